-- Cancel many jobs. ARGV: inbox, reply payload, then 4 a job: flow, job, idempotency key, attempt: the id that the
-- canceller has sent with its own `enqueue`, which is the job's if that was the first with its key.
-- Per job: cancelled (it never ran) | told (running: its worker was told) | shared (others wait for it) | gone.
local inbox, payload, out, now = ARGV[1], ARGV[2], {}, now_ms()

local function cancel(flow, job, idem, attempt)
  local raw = redis.call('GET', P .. 'idem:' .. idem)
  if not raw then return 'gone' end
  local first, _, id = string.match(raw, '^([^|]*)|([^|]*)|([^|]*)$')
  local e = redis.call('XRANGE', queue(flow), id, id)[1]
  if not e then return 'gone' end
  local subs, owner = P .. 'subs:' .. first, entry_inbox(e)
  local last = redis.call('HGET', subs, inbox) or first
  if first ~= job then  -- who does not know that another job answers has got no answer, and leaves those to it who have
    if attempt == last and inbox == owner then redis.call('HDEL', subs, inbox) end
    return 'gone'
  end
  -- Whoever has asked again from the same inbox waits still: a late cancel of the attempt before must not take the job from it.
  if attempt ~= last then return 'shared' end
  -- Only the inbox that asked first may end the job, and only while nobody else waits; to the others it means `not for me`.
  redis.call('HDEL', subs, inbox)
  if (owner ~= '' and inbox ~= '' and inbox ~= owner) or redis.call('HLEN', subs) > 0 then return 'shared' end
  local p = pending(flow, id, id, 1)[1]
  redis.call('DEL', P .. 'idem:' .. idem)  -- the same request may be sent again
  if p and p[2] ~= 'released' then
    redis.call('XADD', P .. 'control', 'MAXLEN', 4096, '*', 'cancel', flow .. ' ' .. id)
    return 'told'
  end
  drop_entry(flow, id, job, entry_stored(e))
  correct_bucket(flow, -entry_units(e), now)  -- it never ran: its rate gets back what it was charged
  reply(flow, entry_inbox(e), job, payload)
  return 'cancelled'
end

for i = 3, #ARGV, 4 do out[#out + 1] = cancel(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]) end
return out
