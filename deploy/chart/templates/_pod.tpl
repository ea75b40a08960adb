{{/* The Pods of a StatefulSet or Deployment. */}}
{{- define "refshim.pod" -}}
metadata:
  labels:
    {{- mergeOverwrite (deepCopy .Values.podLabels) (include "refshim.selector" . | fromYaml) | toYaml | nindent 4 }}
  annotations:
    # refshim reads the configuration when it starts. It looks at the files of Secrets again by itself.
    checksum/config: {{ include "refshim.config" . | sha256sum }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "refshim.serviceAccountName" . }}
  automountServiceAccountToken: false
  # Variables such as REGISTRY_PORT, made from the names of Services, would be taken for settings by the registry.
  enableServiceLinks: false
  # Longer than refshim takes to let requests in progress end.
  terminationGracePeriodSeconds: {{ .Values.terminationGracePeriodSeconds }}
  securityContext:
    {{- toYaml .Values.podSecurityContext | nindent 4 }}
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .Values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if gt (include "refshim.replicas" . | int) 1 }}
  {{- with .Values.topologySpread }}
  topologySpreadConstraints:
    {{- range . }}
    - {{- toYaml . | nindent 6 }}
      labelSelector:
        matchLabels:
          {{- include "refshim.selector" $ | nindent 10 }}
      # The Pods of the version before do not count.
      matchLabelKeys: [pod-template-hash]
    {{- end }}
  {{- end }}
  {{- end }}
  {{- if or (eq .Values.mode "sidecar") .Values.extraInitContainers }}
  initContainers:
    {{- with .Values.extraInitContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- if eq .Values.mode "sidecar" }}
    {{- include "refshim.registry" . | nindent 4 }}
    {{- end }}
  {{- end }}
  containers:
    {{- include "refshim.container" . | nindent 4 }}
    {{- with .Values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ include "refshim.fullname" . }}
    # "refshim index dump" and the like need room for a while.
    - name: tmp
      emptyDir: {}
    {{- range $name, $source := include "refshim.files" . | fromYaml }}
    - name: {{ $name }}
      {{- with $source.secret }}
      secret:
        secretName: {{ . | quote }}
        defaultMode: 0440
      {{- end }}
      {{- with $source.configMap }}
      configMap:
        name: {{ . | quote }}
      {{- end }}
    {{- end }}
    {{- if eq .Values.index.kind "postgresql" }}
    # Nothing in it has to survive.
    - name: data
      emptyDir: {}
    {{- else }}
    {{- with .Values.index.local.existingClaim }}
    - name: data
      persistentVolumeClaim:
        claimName: {{ . }}
    {{- end }}
    {{- end }}
    {{- if and (eq .Values.mode "sidecar") .Values.registry.persistence.enabled }}
    {{- with .Values.registry.persistence.existingClaim }}
    - name: registry
      persistentVolumeClaim:
        claimName: {{ . }}
    {{- end }}
    {{- end }}
    {{- with .Values.extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{- define "refshim.container" -}}
- name: refshim
  image: {{ include "refshim.image" (dict "image" .Values.image "tag" .Chart.AppVersion) }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  env:
    - name: REFSHIM_CONFIG
      value: /etc/refshim/config/refshim.toml
    - name: REFSHIM_LISTEN
      value: 0.0.0.0:5000
    # The kubelet probes the Pod's address, not its loopback.
    - name: REFSHIM_ADMIN_LISTEN
      value: 0.0.0.0:5001
    - name: REFSHIM_DATA_DIR
      value: /var/lib/refshim
    {{- with .Values.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .Values.extraEnvFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  ports:
    - name: {{ include "refshim.scheme" . }}
      containerPort: 5000
    - name: admin
      containerPort: 5001
    {{- range .Values.service.extraPorts }}
    - name: {{ .name }}
      containerPort: {{ .containerPort }}
    {{- end }}
  {{- with include "refshim.preStopSeconds" . | int }}
  lifecycle:
    preStop:
      # Requests come until each load balancer knows that this replica is going.
      sleep:
        seconds: {{ . }}
  {{- end }}
  livenessProbe:
    httpGet:
      path: /healthz
      port: admin
    {{- toYaml .Values.livenessProbe | nindent 4 }}
  readinessProbe:
    httpGet:
      path: /readyz
      port: admin
    {{- toYaml .Values.readinessProbe | nindent 4 }}
  resources:
    {{- toYaml .Values.resources | nindent 4 }}
  securityContext:
    {{- toYaml .Values.securityContext | nindent 4 }}
  volumeMounts:
    - name: data
      mountPath: /var/lib/refshim
    - name: config
      mountPath: /etc/refshim/config
      readOnly: true
    - name: tmp
      mountPath: /tmp
    {{- range $name, $_ := include "refshim.files" . | fromYaml }}
    - name: {{ $name }}
      mountPath: /etc/refshim/{{ $name }}
      readOnly: true
    {{- end }}
    {{- with .Values.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}

{{- define "refshim.scheme" -}}
{{- ternary "https" "http" (ne .Values.tls.existingSecret "") }}
{{- end }}
