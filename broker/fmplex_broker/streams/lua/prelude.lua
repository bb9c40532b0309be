-- Shared by every script. KEYS[1] is always "{b}:vfms": all other keys are built from its prefix and so share its slot.
local P = string.match(KEYS[1], '^({[^}]*}:)')
local VFMS = KEYS[1]
local CLASSES = {'interactive', 'offline'}

local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

-- A flow is "<class>:<vfm>"; its stream is "q:<class>:<vfm>".
local function queue(flow) return P .. 'q:' .. flow end
local function flow_parts(flow) return string.match(flow, '^([^:]+):(.+)$') end

local function is_error(reply) return type(reply) == 'table' and reply.err ~= nil end

-- The record of a vFM: `name=value` pairs, joined by `|`. `pass_ms`: the longest pass with which its targets can be kept, 0: any.
local FIELDS = {'status', 'version', 'generation', 'max_pending', 'weight', 'rate', 'pass_ms'}
local NUMBERS = {generation = '%d', max_pending = '%d', weight = '%.17g', rate = '%.17g', pass_ms = '%.17g'}

-- A table by these names; nil if there is no such vFM.
local function record(vfm)
  local raw = redis.call('HGET', VFMS, vfm)
  if not raw then return nil end
  local r = {}
  for name, value in string.gmatch(raw, '([^=|]+)=([^|]*)') do
    r[name] = NUMBERS[name] and tonumber(value) or value
  end
  return r
end

-- Fingerprint of what the live workers of this backbone host; nil while nobody has said so.
local function hosted() return string.match(redis.call('HGET', VFMS, ':hosted') or '', '^([^|]+)') end

-- True if a version was deployed for another fingerprint (what follows its `-`) than `now`, the one that is hosted.
local function is_stale(version, now)
  local made_for = string.match(version, '-(.+)$')
  return now ~= nil and made_for ~= nil and made_for ~= now
end

-- The counter is the truth (every beat tells it); the word on `control` says which vFM, and saves the wait for the next beat.
local function changed(vfm)
  redis.call('XADD', P .. 'control', 'MAXLEN', 4096, '*',
             'changed', redis.call('HINCRBY', VFMS, ':changes', 1), 'vfm', vfm)
end

local function put_record(vfm, r)
  local parts = {}
  for i, name in ipairs(FIELDS) do
    parts[i] = name .. '=' .. (NUMBERS[name] and string.format(NUMBERS[name], r[name]) or r[name])
  end
  redis.call('HSET', VFMS, vfm, table.concat(parts, '|'))
  changed(vfm)
end

local function ring() redis.call('XADD', P .. 'wake', 'MAXLEN', 256, '*', 'w', '1') end

-- Virtual time of a flow: score at which it goes on, and the mean units of its recent jobs (0: not known).
local function virtual(class, vfm)
  local raw = redis.call('HGET', VFMS, vfm .. ':v:' .. class)
  if not raw then return 0, 0 end
  local at, mean = string.match(raw, '^([^|]*)|([^|]*)$')
  return tonumber(at), tonumber(mean)
end

local function set_virtual(class, vfm, at, mean)
  redis.call('HSET', VFMS, vfm .. ':v:' .. class, string.format('%.17g|%.6g', at, mean))
end

-- Mark a flow ready at max(its own last virtual time, the current minimum): a newcomer is not behind everybody's backlog,
-- and nobody can save up time by being idle. True if it was not ready before.
local function mark_ready(class, vfm)
  local ready = P .. 'ready:' .. class
  if redis.call('ZSCORE', ready, vfm) then return false end
  local front = redis.call('ZRANGE', ready, 0, 0, 'WITHSCORES')
  local floor = tonumber(front[2] or redis.call('HGET', VFMS, ':clock:' .. class) or 0)
  local own = virtual(class, vfm)
  redis.call('ZADD', ready, string.format('%.17g', math.max(own, floor)), vfm)
  return true
end

-- The group is made again wherever it is found missing; entries that were never delivered must then be found again too.
local function ensure_group(flow)
  local class, vfm = flow_parts(flow)
  if redis.call('HEXISTS', VFMS, vfm) == 0 then return end  -- retired: its keys must stay gone
  local made = redis.pcall('XGROUP', 'CREATE', queue(flow), 'w', '0', 'MKSTREAM')
  if not is_error(made) then
    if redis.call('XLEN', queue(flow)) > 0 and mark_ready(class, vfm) then ring() end
  end
end

-- XPENDING over a range; an empty list when stream or group are gone.
local function pending(flow, from, to, count, consumer)
  local reply
  if consumer then reply = redis.pcall('XPENDING', queue(flow), 'w', from, to, count, consumer)
  else reply = redis.pcall('XPENDING', queue(flow), 'w', from, to, count) end
  if is_error(reply) then
    ensure_group(flow)
    return {}
  end
  return reply
end

-- Store the reply if the job has none yet and tell every inbox that waits. `large` replies travel by key only.
local INBOX_TTL, INBOX_LENGTH, LARGE = 600000, 16384, 65536
local function reply(inbox, job, payload, ttl)
  if not redis.call('SET', P .. 'res:' .. job, payload, 'NX', 'PX', ttl) then return false end
  local body = payload
  if #payload > LARGE then body = '' end
  local function post(to)
    local key = P .. 'in:' .. to
    redis.call('XADD', key, 'MAXLEN', '~', INBOX_LENGTH, '*', 'j', job, 'r', body)
    redis.call('PEXPIRE', key, INBOX_TTL)
  end
  if inbox ~= '' then post(inbox) end
  local subs = P .. 'subs:' .. job
  for _, other in ipairs(redis.call('SMEMBERS', subs)) do post(other) end
  redis.call('DEL', subs)
  return true
end

-- Entry fields are written in one fixed order: j job, c inbox, g version, u units, t deadline, d payload, b blob flag.
local function entry_job(entry) return entry[2][2] end
local function entry_inbox(entry) return entry[2][4] end
local function entry_units(entry) return tonumber(entry[2][8]) or 1 end

local function drop_entry(flow, id, job)
  redis.pcall('XACK', queue(flow), 'w', id)
  redis.call('XDEL', queue(flow), id)
  redis.call('DEL', P .. 'blob:' .. job)
end

-- Scores in `back` of the flows of one class, [from, to): when it was given back, in a span of its own for each class.
local function back_range(class)
  for rank, name in ipairs(CLASSES) do
    if name == class then return (rank - 1) * 1e13, rank * 1e13 end
  end
end

-- Hand a pending entry to the pseudo-consumer `released`; `>` never returns it, so it must be listed in `back`.
local function give_back(flow, id, attempts, now)
  redis.call('XCLAIM', queue(flow), 'w', 'released', 0, id, 'RETRYCOUNT', math.max(attempts, 0), 'JUSTID')
  redis.call('ZADD', P .. 'back', 'NX', back_range((flow_parts(flow))) + now, flow)
end

-- How many workers have died while they loaded a version of a vFM; what is long ago is forgotten: machines die of other things too.
local DEATHS_MS = 600000
local function deaths(vfm, version, now)
  local of, count, at = string.match(redis.call('HGET', VFMS, vfm .. ':deaths') or '', '^([^|]*)|(%d+)|(%d+)$')
  if of ~= version or now - tonumber(at) > DEATHS_MS then return 0 end
  return tonumber(count)
end

-- True if a version is on offer and no worker has accepted it yet.
local function untried(vfm, version)
  local offered = redis.call('HGET', VFMS, vfm .. ':next')
  return offered and string.match(offered, '^([^|]*)|') == version and redis.call('HEXISTS', VFMS, vfm .. ':votes') == 0
end

local function count_death(vfm, version, now)
  if redis.call('HEXISTS', VFMS, vfm) == 0 then return end  -- retired: its fields must stay gone
  redis.call('HSET', VFMS, vfm .. ':deaths', string.format('%s|%d|%d', version, deaths(vfm, version, now) + 1, now))
end

-- A lease is live while it has not expired; 0 means condemned.
local function lease(worker) return tonumber(redis.call('ZSCORE', P .. 'leases', worker) or -1) end
