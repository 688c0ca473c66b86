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

{{/* What the head of a Ray cluster needs to reach the reward servers: a dict of lists, mounts and volumes. */}}
{{- define "trireme.rewardAccess" -}}
{{- $security := .Values.reward.security -}}
{{- $names := dict "tls" $security.tlsSecret "client" $security.clientTlsSecret "token" $security.tokenSecret -}}
mounts:
  {{- range $kind, $name := $names }}
  {{- if and $.Values.reward.enabled $name }}
  - {name: reward-{{ $kind }}, mountPath: /etc/trireme-reward/{{ $kind }}, readOnly: true}
  {{- end }}
  {{- end }}
volumes:
  {{- range $kind, $name := $names }}
  {{- if and $.Values.reward.enabled $name }}
  - name: reward-{{ $kind }}
    secret:
      secretName: {{ $name }}
      defaultMode: 0440
      {{- if eq $kind "tls" }}
      items: [{key: ca.crt, path: ca.crt}]  # The servers' key stays with the servers.
      {{- end }}
  {{- end }}
  {{- end }}
{{- end }}

{{- define "trireme.rewardAccessFlags" -}}
{{- with .Values.reward.security -}}
{{- if .tlsSecret -}}
--reward.tls_ca /etc/trireme-reward/tls/ca.crt
{{- else -}}
--reward.allow_plaintext true
{{- end }}
{{- if .clientTlsSecret }}
--reward.tls_certificate /etc/trireme-reward/client/tls.crt --reward.tls_key /etc/trireme-reward/client/tls.key
{{- end }}
{{- if .tokenSecret }}
--reward.token_file /etc/trireme-reward/token/token
{{- end }}
{{- end }}
{{- end }}
