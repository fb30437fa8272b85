-- One write for each nineteen reads, over the keys load-0 to load-(KEYS - 1).
local keys = tonumber(os.getenv("LOAD_KEYS"))
local body = os.getenv("LOAD_BODY")
local count = 0
local write_headers = {}

function init()
   for name, value in pairs(wrk.headers) do write_headers[name] = value end
   write_headers["Content-Type"] = "application/json"
end

function request()
   count = count + 1
   local path = "/configs/load-" .. (count % keys)
   if count % 20 == 0 then return wrk.format("PUT", path, write_headers, body) end
   return wrk.format("GET", path)
end
