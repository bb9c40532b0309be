-- Take a tuning job. ARGV: worker, number of this claim, its place, 1 if nothing is in hand there, attempts at most, error of a job
-- that had more and its words, then the jobs that it has in hand.
-- Returns {state, jobs that have ended and hold their files still, id, take}: ok | none | lost | stale (a later claim came first).
local me, number, place, idle, most = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4] == '1', tonumber(ARGV[5])
local held, known = P .. 'held:' .. me, {}
if lease(me) <= now_ms() then return {'lost', 0, '', 0} end
if tonumber(redis.call('HGET', held, '#tunes') or 0) >= number then return {'stale', 0, '', 0} end
redis.call('HSET', held, '#tunes', ARGV[2], '#place', place)
for i = 8, #ARGV do known[ARGV[i]] = true end

-- The job of a worker that has ended waits again. It counts an attempt, unless that worker has ended in order.
local function take_back(id, worker, status, owner)
  local key = tune_key(id)
  local in_order = redis.call('HGET', key, 'left')
  disown(id)
  if not in_order then redis.call('HINCRBY', key, 'attempts', 1) end
  if status == 'running' then
    local step = redis.call('HGET', key, 'step')
    say(id, in_order and 'info' or 'warn', 'Worker ' .. worker .. ' has ended; the job goes on from '
        .. (step and 'its checkpoint of step ' .. step or 'the beginning'))
    redis.call('HSET', key, 'status', 'queued', 'queued_at', seconds())
    await_worker(id, owner)
  end
end

-- A new number: what comes of earlier takes is refused, and counts anew.
local function taken(id)
  local key = tune_key(id)
  local take = redis.call('HINCRBY', key, 'take', 1)
  redis.call('HSET', key, 'worker', me, 'save', 0, 'said', 0, 'counted', redis.call('HGET', key, 'saved') or 0)
  redis.call('HDEL', key, 'told', 'was')
  if not redis.call('HGET', key, 'step') then redis.call('HSET', key, 'fingerprint', place) end
  redis.call('SADD', TAKEN, id)
  return {'ok', redis.call('SCARD', OVER), id, take}
end

for _, id in ipairs(redis.call('SMEMBERS', TAKEN)) do
  local worker, status, owner = unpack(redis.call('HMGET', tune_key(id), 'worker', 'status', 'owner'))
  if not worker then redis.call('SREM', TAKEN, id)
  elseif lease(worker) <= 0 then take_back(id, worker, status, owner)
  elseif worker == me and not known[id] then
    -- The answer to an earlier claim was lost, or it was dropped here while the lease had run out.
    if status == 'running' then return taken(id) end
    disown(id)
  end
end

for _, owner in ipairs(redis.call('ZRANGE', READY, 0, -1)) do
  local at = redis.call('ZSCORE', READY, owner)
  for _, id in ipairs(redis.call('ZRANGE', READY .. ':' .. owner, 0, -1)) do
    local key = tune_key(id)
    local status, attempts, deaths, begun, step, weight = unpack(redis.call(
      'HMGET', key, 'status', 'attempts', 'deaths', 'fingerprint', 'step', 'weight'))
    if status ~= 'queued' then await_no_worker(id, owner)
    elseif tonumber(attempts or 0) >= most then
      redis.call('HSET', key, 'error', ARGV[6])
      say(id, 'error', ARGV[7])
      end_tune(id, owner, 'failed')
    elseif (step and begun ~= place) or (tonumber(deaths or 0) > 0 and not idle) then say_why_it_waits(id)
    else
      await_no_worker(id, owner)
      if tonumber(at) > tonumber(redis.call('HGET', CLOCK, ':') or 0) then redis.call('HSET', CLOCK, ':', at) end
      charge(owner, 1, weight)  -- of two owners who have had the same, each has a worker
      redis.call('HSET', key, 'status', 'running')
      redis.call('HSETNX', key, 'started_at', seconds())
      say(id, 'info', step and 'Training goes on after step ' .. step .. ' on worker ' .. me
          or 'Fine-tuning job started on worker ' .. me)
      return taken(id)
    end
  end
end
return {'none', redis.call('SCARD', OVER), '', 0}
