{{/* Names and labels. */}}

{{- define "refshim.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* At most 52, which leaves room for what Kubernetes and this chart append. */}}
{{- define "refshim.fullname" -}}
{{- $name := include "refshim.name" . }}
{{- $both := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- default $both .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "refshim.serviceAccountName" -}}
{{- $default := ternary (include "refshim.fullname" .) "default" .Values.serviceAccount.create }}
{{- default $default .Values.serviceAccount.name }}
{{- end }}

{{/* What selects the Pods: never to change, a StatefulSet or Deployment could not be upgraded. */}}
{{- define "refshim.selector" -}}
app.kubernetes.io/name: {{ include "refshim.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "refshim.labels" -}}
{{ include "refshim.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "refshim.metadata" -}}
name: {{ include "refshim.fullname" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "refshim.labels" . | nindent 2 }}
{{- end }}

{{/* An image of the values, with the tag that it has without one. */}}
{{- define "refshim.image" -}}
{{- $tag := default .tag .image.tag }}
{{- .image.repository }}{{ ternary (printf "@%s" .image.digest) (printf ":%s" $tag) (ne .image.digest "") }}
{{- end }}

{{- define "refshim.replicas" -}}
{{- if eq .Values.index.kind "local" }}1{{ else if kindIs "invalid" .Values.replicas }}3{{ else }}
{{- .Values.replicas | int }}
{{- end }}
{{- end }}

{{- define "refshim.upstream" -}}
{{- ternary "http://127.0.0.1:5003" .Values.upstream.url (eq .Values.mode "sidecar") }}
{{- end }}
