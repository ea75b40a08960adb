{{/* What the schema cannot say, or not as well: values that do not go together. */}}
{{- define "refshim.checks" -}}
{{- $v := .Values }}
{{- $wrong := list }}
{{- if eq $v.mode "gateway" }}
{{- if not $v.upstream.url }}
{{- $wrong = append $wrong "mode gateway needs upstream.url, the registry behind it" }}
{{- end }}
{{- else if or $v.upstream.url $v.upstream.ca.existingSecret $v.upstream.ca.existingConfigMap
  $v.upstream.clientCertificate.existingSecret }}
{{- $wrong = append $wrong (print "mode sidecar has its registry in the Pod: upstream.url, ca and clientCertificate "
  "are for gateways") }}
{{- end }}
{{- if eq $v.index.kind "local" }}
{{- if gt (int $v.replicas) 1 }}
{{- $wrong = append $wrong "index.kind local is for one replica: several need index.kind postgresql" }}
{{- end }}
{{- if $v.index.postgresql.url }}
{{- $wrong = append $wrong "index.postgresql.url is set, but index.kind is local" }}
{{- end }}
{{- else }}
{{- if not $v.index.postgresql.url }}
{{- $wrong = append $wrong "index.kind postgresql needs index.postgresql.url" }}
{{- end }}
{{- if eq $v.mode "sidecar" }}
{{- if and $v.registry.persistence.enabled (not $v.registry.persistence.existingClaim) }}
{{- $wrong = append $wrong (print "registries of several Pods need a storage in common: "
  "registry.persistence.existingClaim (ReadWriteMany), or registry.persistence.enabled false and registry.env") }}
{{- end }}
{{- if and (gt (include "refshim.replicas" . | int) 1) (not $v.registry.httpSecret.existingSecret) }}
{{- $wrong = append $wrong "registries that share a storage need registry.httpSecret" }}
{{- end }}
{{- end }}
{{- end }}
{{- with $v.upstream.service }}
{{- if and .existingSecret (eq .kind "password") (not .user) }}
{{- $wrong = append $wrong "upstream.service of kind password needs a user" }}
{{- end }}
{{- if and .user (ne .kind "password") }}
{{- $wrong = append $wrong "upstream.service has a user with kind password alone" }}
{{- end }}
{{- end }}
{{- $owned := dict
  "upstream" "upstream.url" "upstreams.default.url" "upstream.url" "upstreams.default.ca" "upstream.ca"
  "upstreams.default.certificate" "upstream.clientCertificate" "upstreams.default.key" "upstream.clientCertificate"
  "upstreams.default.service" "upstream.service" "index.url" "index.postgresql.url"
  "index.password_file" "index.postgresql.password" "index.migrate" "index.postgresql.migrate"
  "index.tls.ca" "index.postgresql.ca" "index.tls.certificate" "index.postgresql.clientCertificate"
  "index.tls.key" "index.postgresql.clientCertificate" "tls.certificate" "tls.existingSecret"
  "tls.key" "tls.existingSecret" "tls.client_ca" "tls.clientCa"
  "listen" "extraEnv" "admin_listen" "extraEnv" "data_dir" "extraEnv" }}
{{- range $setting, $instead := $owned }}
{{- $at := $v.settings }}
{{- range splitList "." $setting }}
{{- $at = ternary (get (ternary $at dict (kindIs "map" $at)) .) "" (kindIs "map" $at) }}
{{- end }}
{{- if ne (toString $at) "" }}
{{- $wrong = append $wrong (printf "settings.%s is the chart's: set %s" $setting $instead) }}
{{- end }}
{{- end }}
{{- $clientCa := $v.tls.clientCa }}
{{- if and (or $clientCa.existingSecret $clientCa.existingConfigMap) (not $v.tls.existingSecret) }}
{{- $wrong = append $wrong "tls.clientCa needs tls.existingSecret" }}
{{- end }}
{{- if and $v.ingress.enabled (not $v.ingress.hosts) }}
{{- $wrong = append $wrong "ingress needs hosts" }}
{{- end }}
{{- if and $v.httpRoute.enabled (not $v.httpRoute.parentRefs) }}
{{- $wrong = append $wrong "httpRoute needs parentRefs" }}
{{- end }}
{{- $shutdown := dig "timeouts" "shutdown" "30s" $v.settings | toString }}
{{- if regexMatch "^[0-9]+[sm]$" $shutdown }}
{{- $seconds := regexFind "^[0-9]+" $shutdown | int | mul (hasSuffix "m" $shutdown | ternary 60 1) }}
{{- $needed := add $seconds (include "refshim.preStopSeconds" . | int) }}
{{- if le (int64 $v.terminationGracePeriodSeconds) $needed }}
{{- $wrong = append $wrong (printf "terminationGracePeriodSeconds must be more than %d" $needed) }}
{{- end }}
{{- end }}
{{- if $wrong }}
{{- fail (printf "\n- %s" (join "\n- " $wrong)) }}
{{- end }}
{{- end }}

{{/* Where nobody else takes over, waiting would only make the pause longer. */}}
{{- define "refshim.preStopSeconds" -}}
{{- ternary .Values.preStopSeconds 0 (gt (include "refshim.replicas" . | int) 1) | int }}
{{- end }}
