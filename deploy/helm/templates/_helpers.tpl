{{- define "re4.labels" -}}
app.kubernetes.io/name: re4-retrieval
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{- define "re4.histories" -}}
{{- if .Values.histories.url }}{{ .Values.histories.url }}
{{- else if .Values.valkey.enabled }}redis://{{ .Release.Name }}-valkey:6379/0
{{- else }}none{{ end }}
{{- end }}

{{- define "re4.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "re4.environment" -}}
{{- with compact (list .Values.bundles.credentialsSecret .Values.environmentSecret) }}
envFrom:
  {{- range . }}
  - secretRef:
      name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}
