data "aws_iam_policy_document" "nodes_may_assume" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "nodes" {
  name               = "${var.name}-gpu-nodes"
  assume_role_policy = data.aws_iam_policy_document.nodes_may_assume.json
}

resource "aws_iam_role_policy_attachment" "nodes" {
  for_each = toset([
    "AmazonEKSWorkerNodePolicy",
    "AmazonEKS_CNI_Policy",
    "AmazonEC2ContainerRegistryReadOnly",
  ])
  role       = aws_iam_role.nodes.name
  policy_arn = "arn:aws:iam::aws:policy/${each.key}"
}

# Pods of other work stay away by the taint; gpu-worker comes here by the label.
resource "aws_eks_node_group" "gpu" {
  cluster_name    = var.cluster
  node_group_name = "${var.name}-gpu"
  node_role_arn   = aws_iam_role.nodes.arn
  subnet_ids      = var.private_subnets
  ami_type        = "AL2023_x86_64_NVIDIA"
  instance_types  = var.gpu_types
  disk_size       = 200
  labels          = { "liverseg.example/pool" = "gpu" }

  taint {
    key    = "nvidia.com/gpu"
    value  = "present"
    effect = "NO_SCHEDULE"
  }

  scaling_config {
    min_size     = 0
    desired_size = 1
    max_size     = var.gpu_nodes
  }

  # An autoscaler changes it.
  lifecycle {
    ignore_changes = [scaling_config[0].desired_size]
  }

  depends_on = [aws_iam_role_policy_attachment.nodes]
}
