{{/* TOML of a table: {"table": …, "name": …}. Helm's own toToml writes numbers of the values as 8.0. */}}
{{- define "refshim.toml" -}}
{{- $name := .name }}
{{- $lines := list }}
{{- range $key, $value := .table }}
{{- if not (or (kindIs "map" $value) (kindIs "invalid" $value)) }}
{{- $lines = append $lines (printf "%s = %s" $key (include "refshim.toml.value" $value)) }}
{{- end }}
{{- end }}
{{- if and $lines $name }}

[{{ $name }}]
{{- end }}
{{- range $lines }}
{{ . }}
{{- end }}
{{- range $key, $value := .table }}
{{- if kindIs "map" $value }}
{{- include "refshim.toml" (dict "table" $value "name" (list $name $key | compact | join ".")) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "refshim.toml.value" -}}
{{- if kindIs "slice" . -}}
[{{ range $at, $each := . }}{{ if $at }}, {{ end }}{{ include "refshim.toml.value" $each }}{{ end }}]
{{- else if and (kindIs "float64" .) (eq (float64 (int64 .)) .) -}}
{{- /* Every number of YAML is one of these. One with a fraction stays one, and refshim refuses it. */ -}}
{{ int64 . }}
{{- else -}}
{{ toRawJson . }}
{{- end }}
{{- end }}
