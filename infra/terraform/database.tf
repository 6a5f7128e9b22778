resource "aws_db_subnet_group" "database" {
  name       = var.name
  subnet_ids = var.private_subnets
}

resource "aws_security_group" "database" {
  name        = "${var.name}-database"
  description = "Postgres, from the cluster alone"
  vpc_id      = local.network.vpc_id
}

resource "aws_vpc_security_group_ingress_rule" "database" {
  security_group_id            = aws_security_group.database.id
  referenced_security_group_id = local.network.cluster_security_group_id
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
}

# Prefect's and MLflow's databases are made in it by infra/postgres/databases.sh.
resource "aws_db_instance" "database" {
  identifier                  = var.name
  engine                      = "postgres"
  engine_version              = "17"
  instance_class              = var.database_class
  allocated_storage           = 20
  max_allocated_storage       = 200
  storage_type                = "gp3"
  storage_encrypted           = true
  username                    = "postgres"
  manage_master_user_password = true
  publicly_accessible         = false
  db_subnet_group_name        = aws_db_subnet_group.database.name
  vpc_security_group_ids      = [aws_security_group.database.id]
  backup_retention_period     = 14
  copy_tags_to_snapshot       = true
  deletion_protection         = true
  skip_final_snapshot         = false
  final_snapshot_identifier   = "${var.name}-last"
}
