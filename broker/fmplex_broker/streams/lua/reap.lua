-- Take over from a dead worker (or, with `victim` = me, end my own life in order: nobody has died then, and nothing is to blame).
-- ARGV: me, ms for which I have beaten without a gap, lease ms, attempts at most, budget (entries and flows), error payload, victim
-- or ''. Returns {state, victim, given back, dead letters, more}: idle | wait | ok.
local me, steady, lease_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local most, budget, poisoned, victim = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6], ARGV[7]
local now, given, dead = now_ms(), 0, 0
local leases, orderly = P .. 'leases', victim ~= ''

if not orderly then
  -- After an outage longer than a lease everybody looks dead: only who has itself been heard steadily may judge.
  if lease(me) <= now or steady < lease_ms then return {'wait', '', 0, 0, 0} end
  victim = redis.call('ZRANGEBYSCORE', leases, '-inf', now, 'LIMIT', 0, 1)[1]
  if not victim then return {'idle', '', 0, 0, 0} end
end
redis.call('ZADD', leases, 'XX', 0, victim)  -- condemned: no beat revives it, no claim or mark of it counts

local held = P .. 'held:' .. victim
-- At once: should I not come to the end, another worker takes over what is left.
if orderly then
  redis.call('HDEL', held, '#run', '#new', '#load', '#tune')
  for _, id in ipairs(redis.call('SMEMBERS', P .. 'tunes:taken')) do
    if redis.call('HGET', P .. 'tune:' .. id, 'worker') == victim then redis.call('HSET', P .. 'tune:' .. id, 'left', '1') end
  end
end

-- A unit of a tuning job ran: that is to blame and nothing else, whatever was prepared or loaded meanwhile.
local tuned = redis.call('HGET', held, '#tune')
if tuned then
  redis.call('HDEL', held, '#run', '#new', '#load', '#tune')
  local tune = P .. 'tune:' .. tuned
  if redis.call('HGET', tune, 'worker') == victim then redis.call('HINCRBY', tune, 'deaths', 1) end
end

-- True if a marked entry is still in the victim's hands.
local function holds(line)
  local flow, id = string.match(line, '^(%S+) (%S+)$')
  return #pending(flow, id, id, 1, victim) > 0
end

local function holds_any(field)
  for line in string.gmatch(redis.call('HGET', held, field) or '', '[^\n]+') do
    if holds(line) then return true end
  end
  return false
end

-- Several calls may take over from one victim: what is to blame is decided once. An offer that nobody has accepted yet is; else the
-- jobs are that it ran or prepared; what it loaded, and others have loaded before, only if there were none.
local loaded = redis.call('HGET', held, '#load')
if loaded then
  local offers = {}
  for vfm, version in string.gmatch(loaded, '(%S+) (%S+)') do
    if untried(vfm, version) then offers[#offers + 1] = vfm .. ' ' .. version end
  end
  if #offers > 0 then
    redis.call('HDEL', held, '#run', '#new')
    redis.call('HSET', held, '#load', table.concat(offers, '\n'))
  elseif holds_any('#run') or holds_any('#new') then redis.call('HDEL', held, '#load') end
end

local suspect = {}
for _, field in ipairs({'#run', '#new'}) do
  for line in string.gmatch(redis.call('HGET', held, field) or '', '[^\n]+') do suspect[line] = true end
end

local function bury(flow, id)
  local e = redis.call('XRANGE', queue(flow), id, id)[1]
  if e then
    local _, vfm = flow_parts(flow)
    local grave = P .. 'dead:' .. vfm
    redis.call('XADD', grave, 'MAXLEN', 256, '*', 'flow', flow, unpack(e[2]))
    redis.call('PEXPIRE', grave, 7 * 86400000)
    drop_entry(flow, id, entry_job(e), entry_stored(e))
    reply(flow, entry_inbox(e), entry_job(e), poisoned)
    dead = dead + 1
  else
    redis.pcall('XACK', queue(flow), 'w', id)
  end
end

for _, flow in ipairs(redis.call('HKEYS', held)) do
  if string.sub(flow, 1, 1) ~= '#' then
    local list = pending(flow, '-', '+', budget, victim)
    for _, p in ipairs(list) do
      local blamed = suspect[flow .. ' ' .. p[1]]
      if blamed and p[4] >= most then bury(flow, p[1])
      else
        give_back(flow, p[1], blamed and p[4] or p[4] - 1, now)
        given = given + 1
      end
    end
    if #list < budget then  -- nothing is pending under it now
      redis.pcall('XGROUP', 'DELCONSUMER', queue(flow), 'w', victim)
      redis.call('HDEL', held, flow)
    end
    budget = budget - math.max(#list, 1)  -- a flow costs a look even when it holds nothing
    if budget <= 0 then
      if given > 0 then ring() end
      return {'ok', victim, given, dead, 1}
    end
  end
end
-- At the end, so that each is counted once.
for vfm, version in string.gmatch(redis.call('HGET', held, '#load') or '', '(%S+) (%S+)') do
  count_death(vfm, version, now)
end
redis.call('DEL', held)
redis.call('ZREM', leases, victim)
-- What is on offer may have waited for its vote alone: the living must count again.
for _, vfm in ipairs(redis.call('SMEMBERS', P .. 'offers')) do changed(vfm) end
if given > 0 then ring() end
return {'ok', victim, given, dead, 0}
