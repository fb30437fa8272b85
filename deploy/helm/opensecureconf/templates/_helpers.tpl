{{- define "osc.name" -}}
{{- default .Chart.Name .Values.nameOverride -}}
{{- end -}}

{{- /* Leaves room for the ordinals of pods and for suffixes: a Service name has at most 63 characters. */ -}}
{{- define "osc.fullname" -}}
{{- $name := include "osc.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "osc.selector" -}}
app.kubernetes.io/name: {{ include "osc.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: node
{{- end -}}

{{- define "osc.labels" -}}
app.kubernetes.io/name: {{ include "osc.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "osc.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "osc.saltSecret" -}}
{{- default (printf "%s-salt" (include "osc.fullname" .)) .Values.salt.existingSecret -}}
{{- end -}}

{{- define "osc.apiKeySecret" -}}
{{- default (printf "%s-api-key" (include "osc.fullname" .)) .Values.apiKey.existingSecret -}}
{{- end -}}

{{- define "osc.clusterSecret" -}}
{{- default (printf "%s-cluster-secret" (include "osc.fullname" .)) .Values.clusterSecret.existingSecret -}}
{{- end -}}

{{- /* All nodes. Each one recognises itself in the list and skips the entry. */ -}}
{{- define "osc.nodes" -}}
{{- $fullname := include "osc.fullname" . -}}
{{- $nodes := list -}}
{{- range $number := until (int .Values.nodes) -}}
{{- $nodes = append $nodes (printf "%s-%d.%s-nodes:9001" $fullname $number $fullname) -}}
{{- end -}}
{{- join "," $nodes -}}
{{- end -}}

{{- define "osc.scheme" -}}
{{- ternary "HTTPS" "HTTP" .Values.tls.enabled -}}
{{- end -}}

{{- define "osc.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: ["ALL"]
{{- end -}}

{{- define "osc.podSecurityContext" -}}
{{ toYaml .Values.podSecurityContext }}
seccompProfile:
  {{- if .Values.seccomp.localhostProfile }}
  type: Localhost
  localhostProfile: {{ .Values.seccomp.localhostProfile }}
  {{- else }}
  type: RuntimeDefault
  {{- end }}
{{- end -}}
