{{/*
Values that render, but would not run well, stop here with the reason. The schema checks each key alone;
these rules look at several at once. Included by the deployment, which always renders.
*/}}
{{- define "pulsegate.validate" -}}
{{- if and (gt (include "pulsegate.maxReplicas" . | int) 1) (not (include "pulsegate.hasRedis" .)) -}}
{{- fail "more than one replica needs Redis: each node of the embedded backplane would count and show its own visitors. Set redis.url, redis.existingSecret.name or demoRedis.enabled" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (gt (.Values.autoscaling.minReplicas | int) (.Values.autoscaling.maxReplicas | int)) -}}
{{- fail "autoscaling.minReplicas must not be greater than autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (kindIs "invalid" .Values.autoscaling.targetCPUUtilizationPercentage) (kindIs "invalid" .Values.autoscaling.targetConnectionsPerPod) -}}
{{- fail "autoscaling needs autoscaling.targetCPUUtilizationPercentage or autoscaling.targetConnectionsPerPod" -}}
{{- end -}}
{{- $drain := include "pulsegate.drainSeconds" . | int64 -}}
{{- if lt (include "pulsegate.terminationGracePeriodSeconds" . | int64) $drain -}}
{{- fail (printf "terminationGracePeriodSeconds is less than the %d s that draining may take (config.drainDelay + drainWindow + drainGrace): sockets would be cut by SIGKILL" $drain) -}}
{{- end -}}
{{- if and .Values.demoRedis.enabled (or .Values.redis.url .Values.redis.existingSecret.name) -}}
{{- fail "demoRedis.enabled excludes redis.url and redis.existingSecret.name: which one is meant?" -}}
{{- end -}}
{{- if and .Values.redis.url .Values.redis.existingSecret.name -}}
{{- fail "redis.url excludes redis.existingSecret.name: which one is meant?" -}}
{{- end -}}
{{- if and .Values.redis.ca.existingSecret (or .Values.demoRedis.enabled (not (include "pulsegate.hasRedis" .))) -}}
{{- fail "redis.ca.existingSecret needs redis.url or redis.existingSecret.name" -}}
{{- end -}}
{{- if and .Values.ingest.token .Values.ingest.existingSecret.name -}}
{{- fail "ingest.token excludes ingest.existingSecret.name: which one is meant?" -}}
{{- end -}}
{{- if .Values.ingress.enabled -}}
{{- if not .Values.ingress.hosts -}}
{{- fail "ingress.enabled needs at least one entry in ingress.hosts" -}}
{{- end -}}
{{- if and (not .Values.config.trustedProxies) (ne (toString .Values.config.maxConnectionsPerIp) "0") -}}
{{- fail "ingress.enabled needs config.trustedProxies (the CIDRs of the ingress controller's pods): without it all visitors share the controller's address, and its limit. Or set config.maxConnectionsPerIp to 0" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.config.proxyProtocol (not .Values.config.trustedProxies) -}}
{{- fail "config.proxyProtocol needs config.trustedProxies: the PROXY header is believed from trusted proxies only" -}}
{{- end -}}
{{- end -}}
