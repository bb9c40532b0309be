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

-- True if a key holds what is none of ours: there are no jobs in it.
local function is_foreign(reply) return is_error(reply) and string.find(tostring(reply.err), 'WRONGTYPE', 1, true) ~= nil end

-- Tell whether stream or group are missing. Any other error is the server's refusal: taken for an empty answer it would lose jobs.
local function is_missing(reply)
  if not is_error(reply) then return false end
  local words = tostring(reply.err)
  if string.find(words, 'NOGROUP', 1, true) or string.find(words, 'no such key', 1, true) then return true end
  error(reply)
end

-- A number, kept between two others; what is none (nil, NaN) becomes the least.
local function within(value, least, most)
  if not value or not (value >= least) then return least end
  return math.min(value, most)
end

-- The record of a vFM: `name=value` pairs, joined by `|`. Its targets and `rate`: 0: none; `max_bytes`: 0: the usual.
local TARGETS = {'latency_ms', 'ttft_ms', 'inter_token_ms'}
local FIELDS = {'status', 'version', 'generation', 'max_pending', 'weight', 'rate', 'max_bytes', unpack(TARGETS)}
-- Of each number how it is written, and between what it is kept when it is read: one vFM's must not break a script that others'
-- jobs share, whoever wrote it.
local NUMBERS = {
  generation = {'%d', 0, 1e15}, max_pending = {'%d', 0, 1e9}, weight = {'%.17g', 1e-3, 1e6}, rate = {'%.17g', 0, 1e12},
  max_bytes = {'%d', 0, 1e15},
}
for _, target in ipairs(TARGETS) do NUMBERS[target] = {'%.17g', 0, 1e9} end
local LEAST_RATE = 1e-3

-- A table by these names; nil if there is no such vFM.
local function record(vfm)
  local raw = redis.call('HGET', VFMS, vfm)
  if not raw then return nil end
  local r = {}
  for name, value in string.gmatch(raw, '([^=|]+)=([^|]*)') do r[name] = value end
  for name, number in pairs(NUMBERS) do r[name] = within(tonumber(r[name]), number[2], number[3]) end
  if r.rate > 0 then r.rate = math.max(r.rate, LEAST_RATE) end
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
    parts[i] = name .. '=' .. (NUMBERS[name] and string.format(NUMBERS[name][1], r[name]) or r[name])
  end
  redis.call('HSET', VFMS, vfm, table.concat(parts, '|'))
  changed(vfm)
end

-- Take the operating values of a record from the arguments that begin at `at`, as the scripts that set them are given them.
local function set_terms(r, at)
  r.max_pending, r.weight, r.rate = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
  r.max_bytes = tonumber(ARGV[at + 3] or 0)
  for i, target in ipairs(TARGETS) do r[target] = tonumber(ARGV[at + 3 + i] or 0) end
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
  elseif not is_foreign(made) and not string.find(tostring(made.err), 'BUSYGROUP', 1, true) then error(made) end
end

-- XPENDING over a range; an empty list when stream or group are gone.
local function pending(flow, from, to, count, consumer)
  local reply
  if consumer then reply = redis.pcall('XPENDING', queue(flow), 'w', from, to, count, consumer)
  else reply = redis.pcall('XPENDING', queue(flow), 'w', from, to, count) end
  if is_missing(reply) then
    ensure_group(flow)
    return {}
  end
  return reply
end

-- How long a reply can be asked for again, and a job that is done is known under its idempotency key. Thousands a second wait for
-- interactive ones, who would notice that an answer was lost; who sends offline work may have died, and comes back for its answers.
local REPLY_MS = {interactive = 60000, offline = 900000}

-- Store the reply if the job has none yet and tell every inbox that waits. `large` replies travel by key only. An inbox stays as
-- long as any reply.
local INBOX_TTL, INBOX_LENGTH, LARGE = REPLY_MS.offline, 16384, 65536
local function reply(flow, inbox, job, payload)
  local life = REPLY_MS[(flow_parts(flow))]
  if not redis.call('SET', P .. 'res:' .. job, payload, 'NX', 'PX', life) then return false end
  local body = payload
  if #payload > LARGE then body = '' end
  local function post(to)
    local key = P .. 'in:' .. to
    redis.call('XADD', key, 'MAXLEN', '~', INBOX_LENGTH, '*', 'j', job, 'r', body)
    redis.call('PEXPIRE', key, INBOX_TTL)
  end
  if inbox ~= '' then post(inbox) end
  local subs = P .. 'subs:' .. job
  local others = redis.call('HKEYS', subs)
  for _, other in ipairs(others) do
    if other ~= inbox then post(other) end
  end
  if #others > 0 then redis.call('DEL', subs) end
  return true
end

-- Entry fields are written in one fixed order: j job, c inbox, g version, u units, t deadline, d payload, b blob flag, s stored.
local function entry_job(entry) return entry[2][2] end
local function entry_inbox(entry) return entry[2][4] end
local function entry_units(entry) return tonumber(entry[2][8]) or 1 end
local function entry_stored(entry) return entry[2][16] end

-- Token bucket of a flow: the vFM's rate, in units, for each class by itself, so that a batch takes nothing from who waits for an
-- answer. It holds one second's worth, and less than nothing when more was taken. No key: it is full.
local BUCKET_MS, BUCKET_MOST_MS = 60000, 30 * 86400000
local function bucket_key(flow) return P .. 'rate:' .. flow end

local function set_bucket(flow, rate, level, now)
  local full = within(BUCKET_MS + math.ceil((rate - level) * 1000 / rate), BUCKET_MS, BUCKET_MOST_MS)
  redis.call('SET', bucket_key(flow), string.format('%.17g|%d', level, now), 'PX', string.format('%d', full))
end

local function bucket(flow, rate, now)
  local raw = redis.call('GET', bucket_key(flow))
  if not raw then return rate end
  local level, at = string.match(raw, '^([^|]*)|([^|]*)$')
  level, at = within(tonumber(level) or rate, -1e15, rate), tonumber(at) or now
  if not (at <= now) then  -- the server's clock was set back: from now on it fills again, not when that time has come back
    set_bucket(flow, rate, level, now)
    at = now
  end
  return math.min(rate, level + (now - at) * rate / 1000)
end

-- Take more units from a flow's bucket, or give some back (units < 0).
local function correct_bucket(flow, units, now)
  local _, vfm = flow_parts(flow)
  local r = units ~= 0 and record(vfm)
  if r and r.rate > 0 then set_bucket(flow, r.rate, math.min(r.rate, bucket(flow, r.rate, now) - units), now) end
end

-- Bytes that wait: of a vFM in `<vfm>:bytes`, of the backbone in `:bytes`. What jobs have in common is kept once, in `part:<vfm>:<id>`,
-- and counted once, while `<vfm>:part:<id>` entries refer to it. The field `s` of an entry says what it has added: its own bytes, then
-- ` id:bytes` for every part, then `|` and its idempotency key if that would stay for long after it.
local LONG_MS = 600000
local function part_key(vfm, id) return P .. 'part:' .. vfm .. ':' .. id end
local function part_users(vfm, id) return vfm .. ':part:' .. id end

-- Returns what the vFM and the backbone have now.
local function add_bytes(vfm, bytes)
  local n = string.format('%d', bytes)
  return redis.call('HINCRBY', VFMS, vfm .. ':bytes', n), redis.call('HINCRBY', VFMS, ':bytes', n)
end

local function subtract_bytes(vfm, bytes, parts)
  for id, size in string.gmatch(parts, ' (%w+):(%d+)') do
    if redis.call('HINCRBY', VFMS, part_users(vfm, id), -1) <= 0 then
      redis.call('HDEL', VFMS, part_users(vfm, id))
      redis.call('DEL', part_key(vfm, id))
      bytes = bytes + tonumber(size)
    end
  end
  add_bytes(vfm, -bytes)
end

-- Whatever ends a job ends here. `stored`: the entry's field, if it is at hand.
local function drop_entry(flow, id, job, stored)
  if not stored then
    local e = redis.call('XRANGE', queue(flow), id, id)[1]
    stored = e and entry_stored(e) or ''
  end
  redis.pcall('XACK', queue(flow), 'w', id)
  local own, parts, idem = string.match(stored, '^(%d+)([^|]*)|?(.*)$')
  local there, bytes = redis.call('XDEL', queue(flow), id) == 1, tonumber(own or 0)
  if there and own then
    local _, vfm = flow_parts(flow)
    subtract_bytes(vfm, bytes, parts)
  end
  if bytes > LARGE then redis.call('DEL', P .. 'blob:' .. job) end
  if idem and idem ~= '' then redis.call('PEXPIRE', P .. 'idem:' .. idem, REPLY_MS[(flow_parts(flow))]) end
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
  if of ~= version or math.abs(now - tonumber(at)) > DEATHS_MS then return 0 end  -- either way: a clock may be set back
  return tonumber(count)
end

local function on_offer(vfm, version)
  local offered = redis.call('HGET', VFMS, vfm .. ':next')
  return offered and string.match(offered, '^([^|]*)|') == version
end

-- True if a version is on offer and no worker has accepted it yet.
local function untried(vfm, version)
  return on_offer(vfm, version) and redis.call('HEXISTS', VFMS, vfm .. ':votes') == 0
end

local function count_death(vfm, version, now)
  if redis.call('HEXISTS', VFMS, vfm) == 0 then return end  -- retired: its fields must stay gone
  redis.call('HSET', VFMS, vfm .. ':deaths', string.format('%s|%d|%d', version, deaths(vfm, version, now) + 1, now))
end

-- A lease is live while it has not expired; 0 means condemned.
local function lease(worker) return tonumber(redis.call('ZSCORE', P .. 'leases', worker) or -1) end
