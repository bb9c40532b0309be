-- Add many jobs.
-- ARGV: inbox, result_ttl ms, then 9 a job: class, vfm, job, idempotency key, request digest, units, charge, timeout ms,
-- payload. `charge`: what the job costs its vFM's rate; a call of many jobs is charged once, on its first job.
-- Per job: {status, job, extra}: new | dup | done | conflict | full | closed | stale | unknown | limited (extra = ms to wait).
local inbox, result_ttl, now, hosts = ARGV[1], tonumber(ARGV[2]), now_ms(), hosted()

local function take_tokens(vfm, rate, charge)
  -- Token bucket in units; holds one second's worth, and always lets a full bucket pay for one larger job.
  if rate <= 0 or charge <= 0 then return 0 end
  local key = P .. 'rate:' .. vfm
  local raw = redis.call('GET', key)
  local level, at = rate, now
  if raw then
    level, at = string.match(raw, '^([^|]*)|([^|]*)$')
    level = math.min(rate, tonumber(level) + (now - tonumber(at)) * rate / 1000)
  end
  local need = math.min(charge, rate)
  if level < need then return math.ceil((need - level) * 1000 / rate) end
  redis.call('SET', key, string.format('%.17g|%d', level - charge, now), 'PX', 60000 + math.ceil(charge * 1000 / rate))
  return 0
end

local function known(idem, request, job, flow)
  local raw = redis.call('GET', idem)
  if not raw then return nil end
  local first, digest, entry = string.match(raw, '^([^|]*)|([^|]*)|([^|]*)$')
  if digest ~= request then return {'conflict', first, 0} end
  if redis.call('EXISTS', P .. 'res:' .. first) == 1 then return {'done', first, 0} end
  local there = redis.call('XRANGE', queue(flow), entry, entry)
  if #there == 0 then return nil end
  if inbox ~= '' and entry_inbox(there[1]) ~= inbox then
    redis.call('SADD', P .. 'subs:' .. first, inbox)
    redis.call('PEXPIRE', P .. 'subs:' .. first, math.max(redis.call('PTTL', idem), 1000))
  end
  return {'dup', first, 0}
end

local function add(class, vfm, job, idem, request, units, charge, timeout, payload)
  local r = record(vfm)
  if not r then return {'unknown', job, 0} end
  if r.status ~= 'serving' then return {'closed', job, 0} end
  if is_stale(r.version, hosts) then return {'stale', job, 0} end
  local flow = class .. ':' .. vfm
  local idem_key = P .. 'idem:' .. idem
  local before = known(idem_key, request, job, flow)
  if before then return before end
  local q = queue(flow)
  if redis.call('XLEN', q) >= r.max_pending then return {'full', job, 0} end
  local wait = take_tokens(vfm, r.rate, charge)
  if wait > 0 then return {'limited', job, wait} end
  local large = ''
  if #payload > LARGE then
    redis.call('SET', P .. 'blob:' .. job, payload, 'PX', timeout + result_ttl)
    payload, large = '', '1'
  end
  local id = redis.call('XADD', q, '*', 'j', job, 'c', inbox, 'g', r.version, 'u', units,
                        't', string.format('%d', now + timeout), 'd', payload, 'b', large)
  redis.call('SET', idem_key, job .. '|' .. request .. '|' .. id, 'PX', timeout + result_ttl)
  local rang = mark_ready(class, vfm)
  return {'new', job, rang and 1 or 0}
end

local out, rung = {}, false
for i = 3, #ARGV, 9 do
  local got = add(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], tonumber(ARGV[i + 5]),
                  tonumber(ARGV[i + 6]), tonumber(ARGV[i + 7]), ARGV[i + 8])
  if got[1] == 'new' and got[3] == 1 then rung = true; got[3] = 0 end
  out[#out + 1] = got
end
if rung then ring() end
return out
