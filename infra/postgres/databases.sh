#!/bin/sh
# Make the roles and databases of Prefect and MLflow that are not there yet. The Postgres image runs it on an empty
# volume; on another server run it once as its administrator, with PGHOST, PGUSER and PGPASSWORD set.
set -eu
secrets=${SECRETS_DIR:-/run/secrets}
for name in prefect mlflow; do
    psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --set=name="$name" --set=password="$(cat "$secrets/$name-db")" \
        --dbname=postgres << 'SQL'
SELECT NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') AS absent \gset
\if :absent
CREATE ROLE :"name" LOGIN PASSWORD :'password';
GRANT :"name" TO CURRENT_USER;
\endif
SQL
done
for pair in prefect=prefect mlflow=mlflow mlflow_auth=mlflow; do
    psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --set=name="${pair%=*}" --set=owner="${pair#*=}" \
        --dbname=postgres << 'SQL'
SELECT NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') AS absent \gset
\if :absent
CREATE DATABASE :"name" OWNER :"owner" ENCODING 'UTF8' TEMPLATE template0;
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
\endif
SQL
done
