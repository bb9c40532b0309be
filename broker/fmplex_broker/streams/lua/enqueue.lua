-- Add many jobs.
-- ARGV: inbox, number of parts, then 2 a part: id, bytes; then 11 a job: class, vfm, job, idempotency key, request
-- digest, units, charge, timeout ms, bytes of its call, numbers of its parts (joined by spaces), payload. `charge`: what the vFM's
-- rate must have left for it, and `bytes of its call`: what must fit beside what waits; a call of many jobs asks for all of them on
-- its first job, so that it is taken or refused as a whole, and every job pays for itself.
-- Per job: {status, job, extra}: new | dup | done | conflict | full | closed | stale | unknown | limited (extra = ms to wait)
-- | full_bytes, full_backbone (as many bytes wait as may; extra = how many that is) | large_bytes, large_backbone (it never fits).
local inbox, now, hosts = ARGV[1], now_ms(), hosted()
local ENTRY = 256  -- bytes that an entry and its keys take beside the payload
local VFM_BYTES, BACKBONE_BYTES = 256000000, 1000000000
local MOST_UNITS, MOST_WAIT_MS = 1e9, 86400000
local backbone_most = tonumber(redis.call('HGET', VFMS, ':max_bytes') or 0)
if backbone_most <= 0 then backbone_most = BACKBONE_BYTES end

local parts = {}
for i = 3, 1 + 2 * tonumber(ARGV[2]), 2 do parts[#parts + 1] = {id = ARGV[i], bytes = ARGV[i + 1]} end

-- Ms after which the flow's rate has enough for a job; 0: it has, and has paid. A full bucket pays for one larger job.
local function take_tokens(flow, rate, needs, units)
  if rate <= 0 then return 0 end
  local level = bucket(flow, rate, now)
  needs = math.min(needs, rate)
  if needs > 0 and level < needs then return within(math.ceil((needs - level) * 1000 / rate), 1, MOST_WAIT_MS) end
  set_bucket(flow, rate, level - units, now)
  return 0
end

local function known(idem, request, job, flow)
  local raw = redis.call('GET', idem)
  if not raw then return nil end
  local first, digest, entry = string.match(raw, '^([^|]*)|([^|]*)|([^|]*)$')
  if digest ~= request then return {'conflict', first, 0} end
  if redis.call('EXISTS', P .. 'res:' .. first) == 1 then return {'done', first, 0} end
  local there = redis.call('XRANGE', flow.queue, entry, entry)
  if #there == 0 then return nil end
  if inbox ~= '' and (entry_inbox(there[1]) ~= inbox or job ~= first) then
    redis.call('HSET', P .. 'subs:' .. first, inbox, job)
    redis.call('PEXPIRE', P .. 'subs:' .. first, math.max(redis.call('PTTL', idem), 1000))
  end
  return {'dup', first, 0}
end

-- What many jobs of this script ask for, as it has become: vFMs (their records, or why they take no jobs), bytes that wait (and how
-- many of them are to be counted yet), flows.
local vfms, waits, uncounted, flows = {}, {}, {}, {}
local function look_up(vfm)
  if not vfms[vfm] then
    local r = record(vfm)
    local refused = not r and 'unknown' or r.status ~= 'serving' and 'closed' or is_stale(r.version, hosts) and 'stale'
    vfms[vfm] = {record = r, refused = refused}
  end
  return vfms[vfm].record, vfms[vfm].refused
end

local function flow_of(class, vfm)
  local name = class .. ':' .. vfm
  if not flows[name] then flows[name] = {name = name, queue = queue(name), length = redis.call('XLEN', queue(name)), ready = false} end
  return flows[name]
end

-- Which cap in bytes has no room for so many more, and how large it is; nil if there is room. Offline work is taken while less than
-- half of it waits: what has spare time must not fill the queue of those who have none.
local function over(class, vfm, r, bytes)
  if not waits[vfm] then waits[vfm] = tonumber(redis.call('HGET', VFMS, vfm .. ':bytes') or 0) end
  if not waits[''] then waits[''] = tonumber(redis.call('HGET', VFMS, ':bytes') or 0) end
  local part = class == 'offline' and 0.5 or 1
  local most, all = math.floor(part * (r.max_bytes > 0 and r.max_bytes or VFM_BYTES)), math.floor(part * backbone_most)
  if bytes > most then return 'large_bytes', most end
  if bytes > all then return 'large_backbone', all end
  if waits[vfm] + bytes > most then return 'full_bytes', most end
  if waits[''] + bytes > all then return 'full_backbone', all end
end

-- The parts of a job, and what they add to what waits.
local function read_parts(vfm, numbers)
  local mine, bytes = {}, 0
  if numbers == '' then return mine, 0 end
  for number in string.gmatch(numbers, '%d+') do
    local part = parts[tonumber(number)]
    mine[#mine + 1] = part
    if redis.call('HEXISTS', VFMS, part_users(vfm, part.id)) == 0 then bytes = bytes + #part.bytes end
  end
  return mine, bytes
end

-- Keep the parts as long as the last job that needs them; returns what the entry says of them.
local function keep_parts(vfm, mine, ttl)
  local said = ''
  for _, part in ipairs(mine) do
    local key = part_key(vfm, part.id)
    redis.call('HINCRBY', VFMS, part_users(vfm, part.id), 1)
    local left = redis.call('PTTL', key)
    if left < 0 then redis.call('SET', key, part.bytes, 'PX', ttl)
    elseif left < ttl then redis.call('PEXPIRE', key, ttl) end
    said = said .. ' ' .. part.id .. ':' .. #part.bytes
  end
  return said
end

local function add(class, vfm, job, idem, request, units, charge, timeout, call, numbers, payload)
  local r, refused = look_up(vfm)
  if refused then return {refused, job, 0} end
  local flow, idem_key = flow_of(class, vfm), P .. 'idem:' .. idem
  local before = known(idem_key, request, job, flow)
  if before then return before end
  if flow.length >= r.max_pending then return {'full', job, 0} end
  local mine, shared = read_parts(vfm, numbers)
  local own = #payload + ENTRY
  local cap, most = over(class, vfm, r, math.max(own + shared, call))
  if cap then return {cap, job, most} end
  local wait = take_tokens(flow.name, r.rate, charge, units)
  if wait > 0 then return {'limited', job, wait} end
  local large, ttl = '', timeout + REPLY_MS[class]
  local stored = string.format('%d', own) .. keep_parts(vfm, mine, ttl) .. (timeout > LONG_MS and '|' .. idem or '')
  if #payload > LARGE then
    redis.call('SET', P .. 'blob:' .. job, payload, 'PX', ttl)
    payload, large = '', '1'
  end
  local id = redis.call('XADD', flow.queue, '*', 'j', job, 'c', inbox, 'g', r.version, 'u', units,
                        't', string.format('%d', now + timeout), 'd', payload, 'b', large, 's', stored)
  waits[vfm], waits[''] = waits[vfm] + own + shared, waits[''] + own + shared
  uncounted[vfm] = (uncounted[vfm] or 0) + own + shared
  redis.call('SET', idem_key, job .. '|' .. request .. '|' .. id, 'PX', ttl)
  flow.length = flow.length + 1
  local newly = not flow.ready and mark_ready(class, vfm)
  flow.ready = true
  return {'new', job, newly and 1 or 0}
end

local out, rung = {}, false
local function add_all()
  for i = 3 + 2 * #parts, #ARGV, 11 do
    local units, charge = within(tonumber(ARGV[i + 5]), 1, MOST_UNITS), within(tonumber(ARGV[i + 6]), 0, MOST_UNITS)
    local got = add(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], units, charge, tonumber(ARGV[i + 7]),
                    tonumber(ARGV[i + 8]), ARGV[i + 9], ARGV[i + 10])
    if got[1] == 'new' then
      if got[3] == 1 and not rung then  -- at once: a later job may break the script, and what it has done stays done
        ring()
        rung = true
      end
      got[3] = 0
    end
    out[#out + 1] = got
  end
end

-- Counted once for all jobs of a vFM: two commands a job less.
local whole, broken = pcall(add_all)
for vfm, bytes in pairs(uncounted) do add_bytes(vfm, bytes) end
if whole then return out end
if type(broken) == 'table' then return broken end
return {err = (string.gsub(tostring(broken), '^[^ ]+:%d+: ', ''))}  -- as the server has said it, its code first
