{{- define "finetune-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride }}
{{- end }}

{{- define "finetune-operator.fullname" -}}
{{- $name := include "finetune-operator.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "finetune-operator.selector" -}}
app.kubernetes.io/name: {{ include "finetune-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "finetune-operator.labels" -}}
{{ include "finetune-operator.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "finetune-operator.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "finetune-operator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name: name the ServiceAccount that is there, or set serviceAccount.create" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "finetune-operator.image" -}}
{{- with .Values.image }}
{{- if .digest }}
{{- printf "%s@%s" .repository .digest }}
{{- else }}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Where the heartbeat's Lease lies: it has to be seen by the same watch as the jobs. */}}
{{- define "finetune-operator.leaseNamespace" -}}
{{- default .Release.Namespace .Values.settings.watchNamespace }}
{{- end }}

{{- /* What the operator may do where it serves. tests/chart shows that it uses all of it and needs no more. */}}
{{- define "finetune-operator.rules" -}}
- apiGroups: [finetune.dev]
  resources: [finetunejobs]
  verbs: [get, list, watch]
- apiGroups: [finetune.dev]
  resources: [finetunejobs/status]
  verbs: [patch]
# Asked for by the admission plugin OwnerReferencesPermissionEnforcement (on in OpenShift): a run holds up
# the deletion of its FinetuneJob until its pods are gone.
- apiGroups: [finetune.dev]
  resources: [finetunejobs/finalizers]
  verbs: [update]
# Generated from the rights that finetune_plan/backends declares.
{{ .Files.Get "files/backend-rules.yaml" | trim }}
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
{{- if .Values.settings.deadNodeSeconds }}
# By force, where the node of a pod does not answer.
- apiGroups: [""]
  resources: [pods]
  verbs: [delete]
{{- end }}
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
# A result is noted on the claim that it lies on, so that the same job, applied again, need not train again.
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, patch]
# Kueue's words about a job that it has not admitted, read for such jobs only.
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list]
- apiGroups: [""]
  resources: [events]
  verbs: [create, list, watch]
# The heartbeat comes back through a watch like those of the jobs, of this one name.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [finetune-operator]
  verbs: [list, watch]
{{- end }}
