variable "region" {
  description = "AWS region of the EKS cluster."
  type        = string
}

variable "cluster" {
  description = "Name of the EKS cluster, with the add-on eks-pod-identity-agent."
  type        = string
}

variable "bucket" {
  description = "Name of the bucket for the store, MLflow's artifacts and sources; unique in all of AWS."
  type        = string
}

variable "private_subnets" {
  description = "Subnets, in at least two zones, for the database and the GPU nodes."
  type        = list(string)
}

variable "name" {
  description = "Prefix of what is made."
  type        = string
  default     = "liverseg"
}

variable "namespace" {
  description = "Kubernetes namespace whose service account `liverseg` may use the bucket."
  type        = string
  default     = "liverseg"
}

variable "database_class" {
  description = "Size of the database server."
  type        = string
  default     = "db.t4g.medium"
}

variable "gpu_types" {
  description = "Instance types of the GPU nodes, one GPU each."
  type        = list(string)
  default     = ["g6.4xlarge", "g5.4xlarge"]
}

variable "gpu_nodes" {
  description = "The most GPU nodes there may be."
  type        = number
  default     = 1
}
