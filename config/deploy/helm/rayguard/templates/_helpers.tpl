{{- define "rayguard.name" -}}
{{ .Values.nameOverride | default .Release.Name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "rayguard.selector" -}}
app.kubernetes.io/name: rayguard
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "rayguard.labels" -}}
{{ include "rayguard.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "rayguard.cluster" -}}
{{ required "cluster.name: which RayCluster is to be protected?" .Values.cluster.name }}
{{- end }}

{{- define "rayguard.headService" -}}
{{- $name := .Values.cluster.service | default (printf "%s-head-svc" (include "rayguard.cluster" .)) -}}
{{- if .Values.cluster.namespace }}{{ $name }}.{{ .Values.cluster.namespace }}.svc{{ else }}{{ $name }}{{ end }}
{{- end }}

{{- define "rayguard.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- define "rayguard.configMap" -}}
{{ .Values.existingConfigMap | default (include "rayguard.name" .) }}
{{- end }}

{{- /* What cannot be together is refused here, by the name of the value. */}}
{{- define "rayguard.check" -}}
{{- if eq .Values.placement "sidecar" }}
{{- if .Values.cluster.namespace }}{{ fail "cluster.namespace: a sidecar lives in its cluster's namespace; install this chart there" }}{{ end }}
{{- if gt (int .Values.replicas) 1 }}{{ fail "replicas: a head has one sidecar" }}{{ end }}
{{- if .Values.serve.enabled }}{{ fail "serve.enabled: a sidecar sees the head's share of Serve alone; use placement standalone" }}{{ end }}
{{- else if .Values.rayCluster.create }}{{ fail "rayCluster.create: only with placement sidecar" }}
{{- end }}
{{- if and (gt (int .Values.replicas) 1) (not .Values.sharedStore.url) (not .Values.config) (not .Values.existingConfigMap) }}
{{- fail "replicas: more than one need sharedStore.url, or each finds limits of its own and the head sees their sum" }}
{{- end }}
{{- end }}

{{- define "rayguard.toml" -}}
{{- if .Values.config -}}
{{ .Values.config }}
{{- else -}}
{{- $sidecar := eq .Values.placement "sidecar" -}}
{{- $head := ternary "127.0.0.1" (include "rayguard.headService" .) $sidecar -}}
mode = {{ .Values.mode | quote }}
upstream = "http://{{ $head }}:{{ ternary 18265 .Values.cluster.dashboardPort $sidecar }}"
state_dir = "/var/lib/rayguard"

[[listen]]
address = "0.0.0.0:8265"
{{ if .Values.rayClient.enabled }}
[[listen]]
address = "0.0.0.0:10001"
kind = "ray-client"
upstream = "http://{{ $head }}:{{ ternary 20001 .Values.cluster.clientPort $sidecar }}"
{{ end }}
{{- if .Values.serve.enabled }}
[[listen]]
address = "0.0.0.0:{{ .Values.serve.port }}"
kind = "serve"
upstream = "http://{{ .Values.serve.service | default (printf "%s-serve-svc" (include "rayguard.cluster" .)) }}:{{ .Values.serve.port }}"
{{ end }}
# The head's /tmp cannot be seen from here: its exporters are named.
[metrics]
targets = [{{ range $at, $port := .Values.cluster.metricsPorts }}{{ if $at }}, {{ end }}"{{ $head }}:{{ $port }}"{{ end }}]
discovery_file = "off"
discover = false

# The emptyDir ends with the pod; what is printed is kept by the cluster's logging.
[adjustment_log]
stdout = true

[log]
format = "json"

[admin]
listen = "0.0.0.0:9465"
hosts = [{{ range $at, $name := list (include "rayguard.name" .) (printf "%s.%s" (include "rayguard.name" .) .Release.Namespace) (printf "%s.%s.svc" (include "rayguard.name" .) .Release.Namespace) }}{{ if $at }}, {{ end }}{{ $name | quote }}{{ end }}]
{{- if .Values.admin.tokenSecret }}
token = { file = "/etc/rayguard-admin/{{ .Values.admin.tokenKey }}" }
{{- end }}
{{- if .Values.sharedStore.url }}

[replicas]
url = {{ .Values.sharedStore.url | quote }}
count = {{ .Values.replicas }}
{{- if .Values.sharedStore.passwordSecret }}
password = { file = "/etc/rayguard-store/{{ .Values.sharedStore.passwordKey }}" }
{{- end }}
{{- end }}
{{- with .Values.settings }}

{{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "rayguard.container" -}}
- name: rayguard
  image: {{ include "rayguard.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: ["run", "--config", "/etc/rayguard/rayguard.toml"]
  {{- if eq .Values.placement "standalone" }}
  ports:
    - {containerPort: 8265, name: dashboard}
    {{- if .Values.rayClient.enabled }}
    - {containerPort: 10001, name: client}
    {{- end }}
    {{- if .Values.serve.enabled }}
    - {containerPort: {{ .Values.serve.port }}, name: serve}
    {{- end }}
    - {containerPort: 9465, name: proxy-metrics}
  {{- end }}
  # Neither depends on Ray or Prometheus: a proxy that is taken away because the head is slow takes the head away too.
  readinessProbe:
    httpGet: {path: /readyz, port: 9465}
    periodSeconds: 5
    failureThreshold: 3
  livenessProbe:
    httpGet: {path: /livez, port: 9465}
    periodSeconds: 10
    failureThreshold: 6
  resources: {{- toYaml .Values.resources | nindent 4 }}
  securityContext:
    allowPrivilegeEscalation: false
    readOnlyRootFilesystem: true
    runAsNonRoot: true
    runAsUser: 65532
    capabilities: {drop: [ALL]}
    seccompProfile: {type: RuntimeDefault}
  volumeMounts:
    - {name: rayguard, mountPath: /etc/rayguard, readOnly: true}
    {{- if .Values.admin.tokenSecret }}
    - {name: rayguard-admin, mountPath: /etc/rayguard-admin, readOnly: true}
    {{- end }}
    {{- if .Values.sharedStore.passwordSecret }}
    - {name: rayguard-store, mountPath: /etc/rayguard-store, readOnly: true}
    {{- end }}
    - {name: rayguard-state, mountPath: /var/lib/rayguard}
{{- end }}

{{- define "rayguard.volumes" -}}
- name: rayguard
  configMap: {name: {{ include "rayguard.configMap" . }}}
{{- with .Values.admin.tokenSecret }}
- name: rayguard-admin
  secret: {secretName: {{ . }}}
{{- end }}
{{- with .Values.sharedStore.passwordSecret }}
- name: rayguard-store
  secret: {secretName: {{ . }}}
{{- end }}
- name: rayguard-state
  emptyDir: {sizeLimit: {{ .Values.state.sizeLimit }}}
{{- end }}
