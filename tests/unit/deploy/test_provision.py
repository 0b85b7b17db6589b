"""Databases' addresses are made from the administrator's: the way to the server stays (R-C5)."""

from deploy.provision import with_database, with_role

ADMIN = (
    "postgresql://postgres:secret@db:5432/postgres?sslmode=verify-full&sslrootcert=/a%20b/ca.pem"
)


def test_another_role_is_reached_by_the_same_tls() -> None:
    assert with_role(ADMIN, "consent", "p@ss/word", "consent") == (
        "postgresql://consent:p%40ss%2Fword@db:5432/consent"
        "?sslmode=verify-full&sslrootcert=/a%20b/ca.pem"
    )


def test_another_database_is_reached_by_the_same_tls() -> None:
    assert with_database(ADMIN, "consent") == (
        "postgresql://postgres:secret@db:5432/consent?sslmode=verify-full&sslrootcert=/a%20b/ca.pem"
    )
