-- from a caller's number or address to the visitor, by index (R-G3, R-G10)
-- depends: call_control_0002_protection

-- migrate: apply
SET lock_timeout = '5s';

CREATE INDEX call_callback ON call (callback_number);
CREATE INDEX call_address_address ON call_address (address);

-- migrate: rollback
