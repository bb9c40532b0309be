-- Shared by the scripts of tuning jobs. Fields of `tune:<id>` beside those of `TuneRecord`:
-- owner, weight; step, saved: step and tokens of the last new checkpoint; take: number of the last take, save: of the last save in
-- it, said: of the last event in it, counted: tokens that its owner has paid for; was: "worker take" of who gave it back last;
-- left: its worker has ended in order; told: what was said about why it waits.
local TUNES, READY, TAKEN, CLOCK = P .. 'tunes', P .. 'tunes:ready', P .. 'tunes:taken', P .. 'tunes:clock'
local UNCHECKED, OVER = P .. 'tunes:unchecked', P .. 'tunes:over'
local KEPT_MS = 30 * 86400000  -- KEPT_S in tunes.py
local MOST_EVENTS = 10000
local ENDS = {succeeded = true, failed = true, cancelled = true}
local ASKED = {paused = 'pause', cancelled = 'cancel'}  -- what a worker that has it in hand is told

local function tune_key(id) return P .. 'tune:' .. id end
local function seconds() return string.format('%d', math.floor(now_ms() / 1000)) end

local function say(id, level, message, data)
  redis.call('XADD', tune_key(id) .. ':events', 'MAXLEN', MOST_EVENTS, '*',
             'level', level, 'message', message, 'data', data or '')
end

-- Owners share workers by virtual time, as flows do: the tokens that their jobs have learnt, divided by the jobs' weights.
local function virtual_of(owner) return tonumber(redis.call('HGET', CLOCK, owner) or 0) end

local function await_worker(id, owner)
  redis.call('ZADD', READY .. ':' .. owner, 0, id)
  if redis.call('ZSCORE', READY, owner) then return end
  local front = redis.call('ZRANGE', READY, 0, 0, 'WITHSCORES')
  local at = math.max(virtual_of(owner), tonumber(front[2] or redis.call('HGET', CLOCK, ':') or 0))
  redis.call('HSET', CLOCK, owner, string.format('%.17g', at))
  redis.call('ZADD', READY, string.format('%.17g', at), owner)
end

local function await_no_worker(id, owner)
  redis.call('ZREM', READY .. ':' .. owner, id)
  if redis.call('EXISTS', READY .. ':' .. owner) == 0 then redis.call('ZREM', READY, owner) end
end

local function charge(owner, tokens, weight)
  local by = tokens / within(tonumber(weight), 1e-3, 1e6)
  redis.call('HSET', CLOCK, owner, string.format('%.17g', virtual_of(owner) + by))
  redis.call('ZADD', READY, 'XX', 'INCR', string.format('%.17g', by), owner)
end

local function disown(id)
  redis.call('HDEL', tune_key(id), 'worker', 'left')
  redis.call('SREM', TAKEN, id)
end

-- Whoever has it in hand keeps it: it is told by its next save.
local function end_tune(id, owner, status)
  local key = tune_key(id)
  redis.call('HSET', key, 'status', status, 'finished_at', seconds())
  await_no_worker(id, owner)
  redis.call('ZREM', TUNES, id)
  redis.call('ZREM', UNCHECKED, id)
  redis.call('SREM', P .. 'tunes:open:' .. owner, id)
  redis.call('SADD', OVER, id)
  redis.call('PEXPIRE', key, KEPT_MS)
  redis.call('PEXPIRE', key .. ':events', KEPT_MS)
end

-- How many workers live, and at which places those of them are that tune.
local function places()
  local live = redis.call('ZRANGEBYSCORE', P .. 'leases', '(' .. string.format('%d', now_ms()), '+inf')
  local out = {}
  for _, w in ipairs(live) do
    local place = redis.call('HGET', P .. 'held:' .. w, '#place')
    if place then out[#out + 1] = place end
  end
  return #live, out
end

-- Say, once, why a job waits that no live worker may take.
local function say_why_it_waits(id)
  local key = tune_key(id)
  local status, worker, begun, step, deaths, told = unpack(redis.call(
    'HMGET', key, 'status', 'worker', 'fingerprint', 'step', 'deaths', 'told'))
  if status ~= 'queued' and not (status == 'running' and worker and lease(worker) <= now_ms()) then return end
  local live, there = places()
  local why = ''
  if live == 0 then why = 'no worker of this backbone runs; the job goes on when one does'
  elseif #there == 0 then why = 'tuning is off on every worker of this backbone; set worker.tuning.enabled in the fleet file'
  elseif step then
    for _, place in ipairs(there) do
      if place == begun then there = {} end
    end
    if #there > 0 then
      why = 'it was begun at ' .. begun .. ' (weights, device, threads), and every live worker that tunes differs: '
            .. table.concat(there, ', ') .. '; start one like it, or cancel the job and go on from its last checkpoint'
    end
  end
  if why == '' and tonumber(deaths or 0) > 0 then
    why = 'a worker has died of it; it goes on at one that has nothing else in hand'
  end
  if why == '' then redis.call('HDEL', key, 'told')
  elseif why ~= told then
    redis.call('HSET', key, 'told', why)
    say(id, 'warn', 'Waiting: ' .. why)
  end
end
