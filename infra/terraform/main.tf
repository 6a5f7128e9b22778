# What a cluster on AWS needs beside Kubernetes itself: a bucket, a database and GPU nodes, in an EKS cluster that is
# there. No password passes through here: RDS makes its own and keeps it in Secrets Manager; pods get a role.
# Validated, never applied:
#
#   terraform -chdir=infra/terraform init
#   terraform -chdir=infra/terraform apply

terraform {
  required_version = ">= 1.7"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.100, < 7.0"
    }
  }
}

provider "aws" {
  region = var.region
  default_tags {
    tags = { project = var.name }
  }
}

data "aws_eks_cluster" "this" {
  name = var.cluster
}

locals {
  network = data.aws_eks_cluster.this.vpc_config[0]
}
