-- A request's key belongs to a credential of a tenant: the credential's name may be given again, to another tenant.
UPDATE idempotency_keys AS k SET owner = c.tenant || '/' || c.name FROM credentials AS c WHERE c.name = k.owner;
