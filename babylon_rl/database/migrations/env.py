"""What Alembic runs: the versions, inside the transaction and under the lock that `database/migrate.py` holds."""

from alembic import context

from babylon_rl.database.migrate import configure_options

context.configure(connection=context.config.attributes["connection"], **configure_options())
with context.begin_transaction():
    context.run_migrations()
