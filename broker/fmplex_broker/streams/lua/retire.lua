-- End a vFM's life: closed to enqueue at once; its waiting jobs are left to drain or answered; then all its keys go together.
-- ARGV: vfm, mode (drain | answer), budget (entries), reply payload.
-- Returns {state, jobs left}: gone | draining. Call again until gone.
local vfm, mode, budget, payload = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local r = record(vfm)
if not r then return {'gone', 0} end
if r.status ~= 'draining' then
  r.status, r.generation = 'draining', r.generation + 1
  redis.call('HDEL', VFMS, vfm .. ':next', vfm .. ':votes')  -- a late vote must not open it again
  redis.call('SREM', P .. 'offers', vfm)
  put_record(vfm, r)
end

local function answer(flow, entries)
  for _, e in ipairs(entries) do
    drop_entry(flow, e[1], entry_job(e), entry_stored(e))
    reply(flow, entry_inbox(e), entry_job(e), payload)
  end
end

local function answer_waiting(flow)
  ensure_group(flow)
  local got = redis.call('XREADGROUP', 'GROUP', 'w', 'retire', 'COUNT', budget, 'STREAMS', queue(flow), '>')
  if got and got[1] then answer(flow, got[1][2]) end
  for _, p in ipairs(pending(flow, '-', '+', budget, 'released')) do
    answer(flow, redis.call('XRANGE', queue(flow), p[1], p[1]))
    redis.pcall('XACK', queue(flow), 'w', p[1])
  end
end

local left = 0
for _, class in ipairs(CLASSES) do
  local flow = class .. ':' .. vfm
  if redis.call('EXISTS', queue(flow)) == 1 then
    if mode == 'answer' then answer_waiting(flow) end
    left = left + redis.call('XLEN', queue(flow))
  end
end
if left > 0 then return {'draining', left} end

for _, class in ipairs(CLASSES) do
  redis.call('DEL', queue(class .. ':' .. vfm), bucket_key(class .. ':' .. vfm))
  redis.call('ZREM', P .. 'ready:' .. class, vfm)
  redis.call('ZREM', P .. 'back', class .. ':' .. vfm)
  redis.call('HDEL', VFMS, vfm .. ':v:' .. class)
end
redis.call('DEL', P .. 'dead:' .. vfm)
add_bytes(vfm, -tonumber(redis.call('HGET', VFMS, vfm .. ':bytes') or 0))  -- 0, unless somebody has deleted jobs by hand
redis.call('HDEL', VFMS, vfm, vfm .. ':bytes', vfm .. ':deaths', vfm .. ':spec', vfm .. ':error', vfm .. ':past')
changed(vfm)
return {'gone', 0}
