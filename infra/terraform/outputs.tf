output "bucket" {
  description = "For LIVERSEG_STORE and MLFLOW_ARTIFACTS_DESTINATION in infra/kubernetes/settings.yaml."
  value       = aws_s3_bucket.store.id
}

output "database_host" {
  description = "For PGHOST and PREFECT_SERVER_DATABASE_HOST in infra/kubernetes/settings.yaml."
  value       = aws_db_instance.database.address
}

output "database_secret" {
  description = "Where Secrets Manager keeps the password of the database's administrator."
  value       = aws_db_instance.database.master_user_secret[0].secret_arn
}
