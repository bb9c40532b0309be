-- Cancel many jobs. ARGV: inbox, result_ttl, reply payload, then 3 a job: flow, job, idempotency key.
-- Per job: cancelled (it never ran) | told (running: its worker was told) | shared (others wait for it) | gone.
local inbox, ttl, payload, out, now = ARGV[1], tonumber(ARGV[2]), ARGV[3], {}, now_ms()

local function cancel(flow, job, idem)
  local raw = redis.call('GET', P .. 'idem:' .. idem)
  if not raw then return 'gone' end
  local first, _, id = string.match(raw, '^([^|]*)|([^|]*)|([^|]*)$')
  local e = redis.call('XRANGE', queue(flow), id, id)[1]
  if first ~= job or not e then return 'gone' end
  -- Only the inbox that asked first may end the job, and only while nobody else waits; to the others it means `not for me`.
  redis.call('SREM', P .. 'subs:' .. job, inbox)
  local owner = entry_inbox(e)
  if (owner ~= '' and inbox ~= '' and inbox ~= owner) or redis.call('SCARD', P .. 'subs:' .. job) > 0 then
    return 'shared'
  end
  local p = pending(flow, id, id, 1)[1]
  redis.call('DEL', P .. 'idem:' .. idem)  -- the same request may be sent again
  if p and p[2] ~= 'released' then
    redis.call('XADD', P .. 'control', 'MAXLEN', 4096, '*', 'cancel', flow .. ' ' .. id)
    return 'told'
  end
  drop_entry(flow, id, job, entry_stored(e))
  local _, vfm = flow_parts(flow)
  correct_bucket(vfm, -entry_units(e), now)  -- it never ran: its rate gets back what it was charged
  reply(entry_inbox(e), job, payload, ttl)
  return 'cancelled'
end

for i = 4, #ARGV, 3 do out[#out + 1] = cancel(ARGV[i], ARGV[i + 1], ARGV[i + 2]) end
return out
