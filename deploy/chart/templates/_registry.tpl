{{/* The registry of a sidecar. As a sidecar container it starts before refshim and stops after it, so that requests in
     progress may end. */}}
{{- define "refshim.registry" -}}
{{- $registry := .Values.registry }}
- name: registry
  image: {{ include "refshim.image" (dict "image" $registry.image "tag" "") }}
  imagePullPolicy: {{ $registry.image.pullPolicy }}
  restartPolicy: Always
  env:
    # Loopback: whoever reached the registry directly could push round refshim.
    - name: REGISTRY_HTTP_ADDR
      value: 127.0.0.1:5003
    - name: REGISTRY_STORAGE_DELETE_ENABLED
      value: "true"
    # registry:3 looks for a collector of traces otherwise.
    - name: OTEL_TRACES_EXPORTER
      value: none
    {{- with $registry.httpSecret.existingSecret }}
    - name: REGISTRY_HTTP_SECRET
      valueFrom:
        secretKeyRef:
          name: {{ . }}
          key: {{ $registry.httpSecret.key }}
    {{- end }}
    {{- with $registry.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  # Not httpGet: the kubelet does not reach loopback.
  {{- with $registry.livenessProbe }}
  livenessProbe:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  resources:
    {{- toYaml $registry.resources | nindent 4 }}
  securityContext:
    {{- toYaml .Values.securityContext | nindent 4 }}
  {{- if or $registry.persistence.enabled $registry.extraVolumeMounts }}
  volumeMounts:
    {{- if $registry.persistence.enabled }}
    - name: registry
      mountPath: /var/lib/registry
    {{- end }}
    {{- with $registry.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
{{- end }}
