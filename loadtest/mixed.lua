-- Reads and writes over the keys load-0 to load-(LOAD_KEYS - 1) in random order; LOAD_WRITES percent are writes.
local keys = tonumber(os.getenv("LOAD_KEYS"))
local body = os.getenv("LOAD_BODY")
local writes = tonumber(os.getenv("LOAD_WRITES"))
local due = 0
local write_headers = {}

function init()
   for name, value in pairs(wrk.headers) do write_headers[name] = value end
   write_headers["Content-Type"] = "application/json"
end

function request()
   local path = "/configs/load-" .. math.random(0, keys - 1)
   due = due + writes
   if due >= 100 then
      due = due - 100
      return wrk.format("PUT", path, write_headers, body)
   end
   return wrk.format("GET", path)
end
