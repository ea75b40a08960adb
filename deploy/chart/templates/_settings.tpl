{{/* The Secrets and ConfigMaps with files for refshim, by the directory below /etc/refshim where each is mounted as a
     whole: a file mounted by subPath would not follow its Secret. */}}
{{- define "refshim.files" -}}
{{- $tls := .Values.tls }}
{{- $upstream := .Values.upstream }}
{{- $files := dict "tls" $tls "client-ca" $tls.clientCa
  "upstream-ca" $upstream.ca "upstream-tls" $upstream.clientCertificate "upstream-service" $upstream.service }}
{{- if eq .Values.index.kind "postgresql" }}
{{- $database := .Values.index.postgresql }}
{{- $files = merge $files (dict "database-password" $database.password
  "database-ca" $database.ca "database-tls" $database.clientCertificate) }}
{{- end }}
{{- range $name, $source := $files }}
{{- with $source.existingSecret }}
{{ $name }}: {secret: {{ . | quote }}}
{{- end }}
{{- with $source.existingConfigMap }}
{{ $name }}: {configMap: {{ . | quote }}}
{{- end }}
{{- end }}
{{- end }}

{{/* Where the files of a certificate and its key are, if they are mounted. */}}
{{- define "refshim.identity" -}}
{{- if hasKey .files .name }}
certificate: /etc/refshim/{{ .name }}/tls.crt
key: /etc/refshim/{{ .name }}/tls.key
{{- end }}
{{- end }}

{{/* What the chart's values say of the settings. */}}
{{- define "refshim.settings.own" -}}
{{- $files := include "refshim.files" . | fromYaml }}
{{- $upstream := .Values.upstream }}
{{- $database := .Values.index.postgresql }}
upstream: {{ include "refshim.upstream" . | quote }}
tls:
  {{- if hasKey $files "tls" }}
  certificate: [/etc/refshim/tls/tls.crt]
  key: [/etc/refshim/tls/tls.key]
  {{- end }}
  {{- if hasKey $files "client-ca" }}
  client_ca: /etc/refshim/client-ca/{{ .Values.tls.clientCa.key }}
  {{- end }}
upstreams:
  default:
    {{- include "refshim.identity" (dict "files" $files "name" "upstream-tls") | nindent 4 }}
    {{- if hasKey $files "upstream-ca" }}
    ca: /etc/refshim/upstream-ca/{{ $upstream.ca.key }}
    {{- end }}
    {{- if hasKey $files "upstream-service" }}
    service:
      {{- $setting := get (dict "password" "password_file" "token" "token_file" "dockerConfig" "docker_config")
        $upstream.service.kind }}
      {{ $setting }}: /etc/refshim/upstream-service/{{ $upstream.service.key }}
      {{- with $upstream.service.user }}
      user: {{ . | quote }}
      {{- end }}
    {{- end }}
{{- if eq .Values.index.kind "postgresql" }}
index:
  url: {{ $database.url | quote }}
  migrate: {{ $database.migrate }}
  {{- if hasKey $files "database-password" }}
  password_file: /etc/refshim/database-password/{{ $database.password.key }}
  {{- end }}
  tls:
    {{- include "refshim.identity" (dict "files" $files "name" "database-tls") | nindent 4 }}
    {{- if hasKey $files "database-ca" }}
    ca: /etc/refshim/database-ca/{{ $database.ca.key }}
    {{- end }}
{{- end }}
{{- end }}

{{/* The configuration file. */}}
{{- define "refshim.config" -}}
{{- $settings := mergeOverwrite (deepCopy .Values.settings) (include "refshim.settings.own" . | fromYaml) }}
{{- include "refshim.toml" (dict "table" $settings "name" "") | trim }}
{{- end }}
