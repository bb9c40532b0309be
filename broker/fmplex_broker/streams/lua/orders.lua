-- Goes before claim.lua: the two orders in which jobs are taken. Each says how many jobs (`count`) each candidate gives, `most`
-- at most, and of how many units they probably are (`mean`), and returns how many visits that takes. Which entries of a flow
-- these are is never in question: its oldest undelivered ones.

local function typical_units(class) return tonumber(redis.call('HGET', VFMS, ':mean:' .. class) or 1) end

local function mean_units(class, vfm, typical)
  local _, mean = virtual(class, vfm)
  return mean > 0 and mean or typical
end

-- Fair: so many that all end near one virtual time (`at`). Fill up to a common level, lowest first. Without this, claiming the
-- same number from each would give equal shares whatever the weights.
local function fill_by_weight(class, flows, want)
  local typical = typical_units(class)
  for _, f in ipairs(flows) do f.mean = mean_units(class, f.vfm, typical) end
  local level, speed, filled = 0, 0, 0
  for i, f in ipairs(flows) do
    if i > 1 and (want <= speed * (f.at - level)) then break end
    if i > 1 then want = want - speed * (f.at - level) end
    level, filled, speed = f.at, i, speed + f.weight / f.mean
  end
  level = level + want / speed
  for i, f in ipairs(flows) do
    f.count = i <= filled and math.min(f.most, math.ceil((level - f.at) * f.weight / f.mean)) or 0
  end
  return #flows
end

-- Where the group of a flow has got to; without a group at the start, where it will be made. nil: no such stream.
local function last_delivered(flow)
  local groups, last = redis.pcall('XINFO', 'GROUPS', queue(flow)), '0-0'
  if is_missing(groups) then return nil end
  for _, g in ipairs(groups) do
    for i = 1, #g, 2 do if g[i] == 'last-delivered-id' then last = g[i + 1] end end
  end
  return last
end

local function entries_after(flow, id, count) return redis.call('XRANGE', queue(flow), '(' .. id, '+', 'COUNT', count) end

-- When an entry was added: server ms, and its number in its own stream within that ms.
local function added(id)
  local ms, number = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(number)
end

-- Go on to the next entry that the flow may give. Looks ahead as far as it has come, so at twice what is taken at most.
local function step(class, f)
  if f.count >= f.most then return false end
  if f.seen == #f.ahead then
    f.ahead, f.seen = entries_after(class .. ':' .. f.vfm, f.last, math.min(math.max(f.count, 1), f.most - f.count)), 0
    if #f.ahead == 0 then return false end
    f.last = f.ahead[#f.ahead][1]
  end
  f.seen = f.seen + 1
  f.ms, f.number = added(f.ahead[f.seen][1])
  return true
end

-- The line is in order of the flows' next entries, the oldest at its end. Of equals who has been in it longer comes first:
-- what different streams got in one ms has no order, and is taken in turns.
local function line_up(line, f)
  local from, to = 1, #line + 1
  while from < to do
    local middle = math.floor((from + to) / 2)
    local other = line[middle]
    if f.ms < other.ms or (f.ms == other.ms and f.number < other.number) then from = middle + 1 else to = middle end
  end
  table.insert(line, from, f)
end

-- Arrival: the oldest entries, whoever's they are. Exact over the candidates; ends early rather than read more than `visits`.
local LOOKS = 4  -- flows looked at that cost as much as one visit
local function fill_by_arrival(class, flows, want, visits)
  local line, givers, typical = {}, 0, typical_units(class)
  for _, f in ipairs(flows) do
    f.count, f.ahead, f.seen, f.last = 0, {}, 0, last_delivered(class .. ':' .. f.vfm)
    -- What has nothing left (its last job was cancelled) goes at once: it would be a candidate for ever and hide others.
    if f.last and step(class, f) then line_up(line, f) else redis.call('ZREM', P .. 'ready:' .. class, f.vfm) end
  end
  while want > 0 and #line > 0 do
    local f = table.remove(line)
    if f.count == 0 then
      if givers == visits then break end
      givers, f.mean = givers + 1, mean_units(class, f.vfm, typical)
    end
    local n = #line > 0 and 1 or math.min(want, f.most - f.count)  -- nobody to compare with: all that is left
    f.count, want = f.count + n, want - n
    if want > 0 and step(class, f) then line_up(line, f) end
  end
  return math.max(givers, math.ceil(#flows / LOOKS))
end
