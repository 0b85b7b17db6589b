-- calls, legs, orders to their holder, leases of the holders, and the CDR as a view; first release
-- depends: chassis_0001_path

-- migrate: apply
SET lock_timeout = '5s';

CREATE TABLE call (
    call_day date NOT NULL,
    call_id uuid NOT NULL,
    visitor_id uuid NOT NULL,
    state text NOT NULL CONSTRAINT call_state_ck CHECK (state IN
        ('requested', 'refused', 'reserved', 'dialling', 'talking', 'ending', 'ended')),
    reason text,
    callback_number text,
    destination_number text,
    reserved_ms bigint,
    lease_until timestamptz,
    holder text,
    holder_epoch bigint,
    traceparent text NOT NULL,
    requested_at timestamptz NOT NULL,
    connected_at timestamptz,
    ended_at timestamptz,
    ended_by text CONSTRAINT call_ended_by_ck CHECK (ended_by IN ('a', 'b', 'platform')),
    talk_ms bigint,
    overrun_ms bigint,
    CONSTRAINT call_pk PRIMARY KEY (call_day, call_id),
    -- C1: no leg without a reservation
    CONSTRAINT call_needs_reservation_ck CHECK (state NOT IN ('reserved', 'dialling', 'talking', 'ending')
        OR (reserved_ms > 0 AND lease_until IS NOT NULL)),
    CONSTRAINT call_held_ck CHECK (state NOT IN ('dialling', 'talking', 'ending')
        OR (holder IS NOT NULL AND holder_epoch IS NOT NULL)),
    -- C5: what is refused has no number, so that it cannot be dialled
    CONSTRAINT call_refused_ck CHECK (state <> 'refused'
        OR (reason IS NOT NULL AND holder IS NULL)),
    CONSTRAINT call_ended_ck CHECK ((state = 'ended') = (ended_at IS NOT NULL)),
    CONSTRAINT call_ended_facts_ck CHECK (state <> 'ended'
        OR (talk_ms >= 0 AND overrun_ms >= 0 AND reason IS NOT NULL))
) PARTITION BY RANGE (call_day);
CREATE INDEX call_unanswered ON call (requested_at) WHERE state = 'requested';
CREATE INDEX call_active ON call (visitor_id) WHERE state NOT IN ('refused', 'ended');
CREATE INDEX call_held ON call (holder, holder_epoch) WHERE state IN ('dialling', 'talking', 'ending');
CREATE INDEX call_visitor ON call (visitor_id);

-- C3 in the database: what has ended, or was refused, stays as it is.
CREATE FUNCTION call_ends_once() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a call ends exactly once'
        USING ERRCODE = 'check_violation', CONSTRAINT = 'call_ends_once';
END $$;
CREATE TRIGGER call_ends_once BEFORE UPDATE ON call
    FOR EACH ROW WHEN (OLD.state IN ('ended', 'refused')) EXECUTE FUNCTION call_ends_once();

-- The visitor's address at the request, apart from the traffic data: it has a rule of its own.
CREATE TABLE call_address (
    address_day date NOT NULL,
    call_id uuid NOT NULL,
    address inet NOT NULL,
    CONSTRAINT call_address_pk PRIMARY KEY (address_day, call_id)
) PARTITION BY RANGE (address_day);

CREATE TABLE call_leg (
    call_day date NOT NULL,
    call_id uuid NOT NULL,
    leg text NOT NULL CONSTRAINT call_leg_leg_ck CHECK (leg IN ('a', 'b')),
    dialled_at timestamptz,
    ringing_at timestamptz,
    answered_at timestamptz,
    ended_at timestamptz,
    duration_ms bigint CONSTRAINT call_leg_duration_ck CHECK (duration_ms >= 0),
    sip_status int,
    bye_status int,
    q850_cause int,
    answered_late boolean NOT NULL DEFAULT false,
    is_down boolean NOT NULL DEFAULT false,
    -- what a new process needs to take the leg down; gone when the call has ended
    dialog jsonb,
    CONSTRAINT call_leg_pk PRIMARY KEY (call_day, call_id, leg)
) PARTITION BY RANGE (call_day);

-- Orders from a partition's owner to the process that holds, or will hold, the call.
CREATE TABLE call_order (
    call_day date NOT NULL,
    call_id uuid NOT NULL,
    name text NOT NULL CONSTRAINT call_order_name_ck CHECK (name IN ('dial', 'hang_up')),
    ordered_at timestamptz NOT NULL,
    done_at timestamptz,
    CONSTRAINT call_order_pk PRIMARY KEY (call_day, call_id, name)
) PARTITION BY RANGE (call_day);
CREATE INDEX call_order_open ON call_order (ordered_at) WHERE done_at IS NULL;

-- Which process lives: renewed every second or two; the epoch fences a forgotten twin.
CREATE TABLE holder (
    holder text NOT NULL,
    epoch bigint NOT NULL,
    renewed_at timestamptz NOT NULL,
    CONSTRAINT holder_pk PRIMARY KEY (holder)
);

-- The call detail record: one row a call, both legs.
CREATE VIEW cdr AS
SELECT c.call_day, c.call_id, c.visitor_id, c.callback_number, c.destination_number, c.reason,
       c.ended_by, c.requested_at, c.connected_at, c.ended_at, c.reserved_ms, c.talk_ms, c.overrun_ms,
       a.dialled_at AS a_dialled_at, a.ringing_at AS a_ringing_at, a.answered_at AS a_answered_at,
       a.ended_at AS a_ended_at, a.duration_ms AS a_duration_ms, a.sip_status AS a_sip_status,
       a.bye_status AS a_bye_status, a.q850_cause AS a_q850_cause,
       a.answered_late AS a_answered_late, a.is_down AS a_is_down,
       b.dialled_at AS b_dialled_at, b.ringing_at AS b_ringing_at, b.answered_at AS b_answered_at,
       b.ended_at AS b_ended_at, b.duration_ms AS b_duration_ms, b.sip_status AS b_sip_status,
       b.bye_status AS b_bye_status, b.q850_cause AS b_q850_cause,
       b.answered_late AS b_answered_late, b.is_down AS b_is_down
FROM call c
LEFT JOIN call_leg a ON (a.call_day, a.call_id, a.leg) = (c.call_day, c.call_id, 'a')
LEFT JOIN call_leg b ON (b.call_day, b.call_id, b.leg) = (c.call_day, c.call_id, 'b')
WHERE c.state = 'ended' AND c.reserved_ms IS NOT NULL;

-- migrate: rollback
