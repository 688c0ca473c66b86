{{- define "trireme.labels" -}}
app.kubernetes.io/name: trireme
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "trireme.rewardLabels" -}}
{{ include "trireme.labels" . }}
app.kubernetes.io/component: reward
{{- end }}

{{- define "trireme.rayLabels" -}}
{{ include "trireme.labels" . }}
app.kubernetes.io/component: ray
{{- end }}

{{- define "trireme.image" -}}
{{ .repository }}:{{ .tag }}
{{- end }}

{{- define "trireme.rewardName" -}}
{{ .Release.Name }}-reward
{{- end }}

{{- define "trireme.claim" -}}
{{ .Values.storage.existingClaim | default (printf "%s-runs" .Release.Name) }}
{{- end }}

{{- define "trireme.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "trireme.containerSecurity" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
{{- end }}
