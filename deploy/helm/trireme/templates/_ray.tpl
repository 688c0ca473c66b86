{{/* The spec of a RayCluster, which a RayJob holds as well. Takes a dict: root, and volumes and mounts of the head alone. */}}
{{- define "trireme.raySpec" -}}
{{- $values := .root.Values.ray -}}
rayVersion: {{ $values.rayVersion }}
# The operator gives the token to every Ray container, and uses it itself.
authOptions:
  mode: token
  secretName: {{ .root.Values.secrets.rayToken }}
enableInTreeAutoscaling: true
autoscalerOptions:
  version: v2
  upscalingMode: Default
  idleTimeoutSeconds: {{ $values.rollout.idleTimeoutSeconds }}
  resources: {requests: {cpu: 500m, memory: 1Gi}, limits: {cpu: 500m, memory: 1Gi}}
  securityContext: {{- include "trireme.containerSecurity" . | nindent 4 }}
headGroupSpec:
  serviceType: ClusterIP
  rayStartParams:
    num-cpus: "0"  # The controller runs here; no worker and no learner rank does.
  template:
    metadata:
      labels: {{- include "trireme.rayLabels" .root | nindent 8 }}
    spec:
      # The head keeps its service account: the autoscaler asks Kubernetes for pods with it.
      terminationGracePeriodSeconds: 180
      {{- include "trireme.rayPod" .root | nindent 6 }}
      containers:
        - name: ray-head
          {{- include "trireme.rayContainer" .root | nindent 10 }}
            # Ray gives a stopped job 3 s by default, too short for any checkpoint.
            - {name: RAY_JOB_STOP_WAIT_TIME_S, value: "150"}
          ports:
            - {name: gcs-server, containerPort: 6379}
            - {name: dashboard, containerPort: 8265}
            - {name: client, containerPort: 10001}
          resources: {{- toYaml $values.head.resources | nindent 12 }}
          volumeMounts:
            - {name: runs, mountPath: /runs}
            {{- with .mounts }}{{ toYaml . | nindent 12 }}{{ end }}
      volumes:
        - name: runs
          persistentVolumeClaim: {claimName: {{ include "trireme.claim" .root }}}
        {{- with .volumes }}{{ toYaml . | nindent 8 }}{{ end }}
workerGroupSpecs:
  - groupName: learner
    replicas: {{ $values.learner.replicas }}
    minReplicas: {{ $values.learner.replicas }}
    maxReplicas: {{ $values.learner.replicas }}
    {{- include "trireme.rayWorker" (dict "root" .root "resources" $values.learner.resources) | nindent 4 }}
  - groupName: rollout
    replicas: {{ $values.rollout.minReplicas }}
    minReplicas: {{ $values.rollout.minReplicas }}
    maxReplicas: {{ $values.rollout.maxReplicas }}
    {{- include "trireme.rayWorker" (dict "root" .root "resources" $values.rollout.resources) | nindent 4 }}
{{- end }}

{{- define "trireme.rayWorker" -}}
rayStartParams: {}
template:
  metadata:
    labels: {{- include "trireme.rayLabels" .root | nindent 6 }}
  spec:
    automountServiceAccountToken: false
    terminationGracePeriodSeconds: 60
    {{- include "trireme.rayPod" .root | nindent 4 }}
    containers:
      - name: ray-worker
        {{- include "trireme.rayContainer" .root | nindent 8 }}
          # By default Ray's workers yield to every other process.
          - {name: RAY_worker_niceness, value: "0"}
        resources: {{- toYaml .resources | nindent 10 }}
        volumeMounts:
          - {name: runs, mountPath: /runs}
    volumes:
      - name: runs
        persistentVolumeClaim: {claimName: {{ include "trireme.claim" .root }}}
{{- end }}

{{- define "trireme.rayPod" -}}
restartPolicy: Never  # The autoscaler replaces pods; one that came back would be another Ray node.
securityContext: {{- include "trireme.podSecurity" . | nindent 2 }}
{{- with .Values.ray.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.ray.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Ends in the list `env`, so that the caller may add to it. */}}
{{- define "trireme.rayContainer" -}}
image: {{ include "trireme.image" .Values.ray.image }}
imagePullPolicy: {{ .Values.ray.image.pullPolicy }}
securityContext: {{- include "trireme.containerSecurity" . | nindent 2 }}
env:
  - {name: HF_HOME, value: /runs/.hugging-face}
  - {name: RAY_USAGE_STATS_ENABLED, value: "0"}
  - name: HF_TOKEN
    valueFrom: {secretKeyRef: {name: {{ .Values.secrets.huggingFace }}, key: token, optional: true}}
{{- end }}
