{{- define "pulsegate.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Short enough for the longest suffix, "-internal". */}}
{{- define "pulsegate.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 54 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 54 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 54 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "pulsegate.baseSelectorLabels" -}}
app.kubernetes.io/name: {{ include "pulsegate.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "pulsegate.baseLabels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: pulsegate
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The component is part of every selector: a Service of the gateway must never reach the demo Redis. */}}
{{- define "pulsegate.selectorLabels" -}}
{{ include "pulsegate.baseSelectorLabels" . }}
app.kubernetes.io/component: gateway
{{- end -}}

{{- define "pulsegate.labels" -}}
{{ include "pulsegate.selectorLabels" . }}
{{ include "pulsegate.baseLabels" . }}
{{- end -}}

{{/* Without the chart's version: a release of the chart that changes nothing for the pods must not restart them. */}}
{{- define "pulsegate.podLabels" -}}
{{ include "pulsegate.selectorLabels" . }}
app.kubernetes.io/version: {{ .Values.image.tag | default .Chart.AppVersion | quote }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "pulsegate.demoRedis.selectorLabels" -}}
{{ include "pulsegate.baseSelectorLabels" . }}
app.kubernetes.io/component: demo-redis
{{- end -}}

{{- define "pulsegate.demoRedis.labels" -}}
{{ include "pulsegate.demoRedis.selectorLabels" . }}
{{ include "pulsegate.baseLabels" . }}
{{- end -}}

{{/* Its own component, so that no Service selects the test pod. */}}
{{- define "pulsegate.test.labels" -}}
{{ include "pulsegate.baseSelectorLabels" . }}
app.kubernetes.io/component: test
{{ include "pulsegate.baseLabels" . }}
{{- end -}}

{{- define "pulsegate.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "pulsegate.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "pulsegate.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* "true" or nothing: is there a Redis that all nodes share? */}}
{{- define "pulsegate.hasRedis" -}}
{{- if or .Values.redis.url .Values.redis.existingSecret.name .Values.demoRedis.enabled -}}true{{- end -}}
{{- end -}}

{{- define "pulsegate.redisUrl" -}}
{{- if .Values.demoRedis.enabled -}}
{{- printf "redis://%s-redis:6379" (include "pulsegate.fullname" .) -}}
{{- else -}}
{{- .Values.redis.url -}}
{{- end -}}
{{- end -}}

{{- define "pulsegate.hasIngestToken" -}}
{{- if or .Values.ingest.token .Values.ingest.existingSecret.name -}}true{{- end -}}
{{- end -}}

{{/* The most nodes that the values allow at once. */}}
{{- define "pulsegate.maxReplicas" -}}
{{- if .Values.autoscaling.enabled -}}
{{- .Values.autoscaling.maxReplicas | int -}}
{{- else -}}
{{- .Values.replicaCount | int -}}
{{- end -}}
{{- end -}}

{{/* The fewest nodes in normal running. */}}
{{- define "pulsegate.minReplicas" -}}
{{- if .Values.autoscaling.enabled -}}
{{- .Values.autoscaling.minReplicas | int -}}
{{- else -}}
{{- .Values.replicaCount | int -}}
{{- end -}}
{{- end -}}

{{- define "pulsegate.pdbEnabled" -}}
{{- $wanted := .Values.podDisruptionBudget.enabled | toString -}}
{{- if or (eq $wanted "true") (and (eq $wanted "auto") (gt (include "pulsegate.minReplicas" . | int) 1)) -}}true{{- end -}}
{{- end -}}

{{/* A duration of the gateway ("250ms", "5s", "5m", "2h") in whole seconds, rounded up. The schema checks the form. */}}
{{- define "pulsegate.seconds" -}}
{{- $number := regexFind "^[0-9]+" . | int64 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- if eq $unit "ms" -}}
{{- div (add $number 999) 1000 -}}
{{- else if eq $unit "s" -}}
{{- $number -}}
{{- else if eq $unit "m" -}}
{{- mul $number 60 -}}
{{- else -}}
{{- mul $number 3600 -}}
{{- end -}}
{{- end -}}

{{/* How long a node may take to drain: it exits by itself at the latest after this. */}}
{{- define "pulsegate.drainSeconds" -}}
{{- add (include "pulsegate.seconds" .Values.config.drainDelay) (include "pulsegate.seconds" .Values.config.drainWindow) (include "pulsegate.seconds" .Values.config.drainGrace) -}}
{{- end -}}

{{/* Five seconds more than the drain: the kubelet's SIGKILL must never cut a drain short. */}}
{{- define "pulsegate.terminationGracePeriodSeconds" -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds -}}
{{- add (include "pulsegate.drainSeconds" .) 5 -}}
{{- else -}}
{{- .Values.terminationGracePeriodSeconds | int64 -}}
{{- end -}}
{{- end -}}

{{/*
The settings under `config` as environment variables. One rule names them all: fooBar is GATEWAY_FOO_BAR.
The schema lists the keys that exist, since the gateway refuses to start on a GATEWAY_ variable it does not know.
*/}}
{{- define "pulsegate.configEnv" -}}
{{- range $key, $value := .Values.config }}
{{- if kindIs "slice" $value }}
{{- if $value }}
- name: GATEWAY_{{ $key | snakecase | upper }}
  value: {{ $value | join "," | quote }}
{{- end }}
{{- else if kindIs "bool" $value }}
- name: GATEWAY_{{ $key | snakecase | upper }}
  value: {{ ternary "on" "off" $value | quote }}
{{- else if kindIs "float64" $value }}
- name: GATEWAY_{{ $key | snakecase | upper }}
  value: {{ $value | int64 | quote }}
{{- else if not (kindIs "invalid" $value) }}
- name: GATEWAY_{{ $key | snakecase | upper }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "pulsegate.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "pulsegate.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop:
    - ALL
{{- end -}}
