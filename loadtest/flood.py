#!/usr/bin/env python3
"""Measures the new user keys of one client during a flood of new user keys from another address.

Usage: loadtest/flood.py [SERVER] (default: target/release/opensecureconf)

100 connections from 127.0.0.2 each keep a list request with a new user key in flight. One connection from 127.0.0.1
creates entries sequentially, each with a new user key. Prints the statuses of both clients, the latency of the honest
requests, and the derivations per second. The limit on failed keys is disabled, because it would stop the flood.
"""
import collections
import http.client
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
CONNECTIONS = 100
SECONDS = float(os.environ.get("LOAD_SECONDS", "10"))


def start(server, directory):
    settings = {"OSC_HOST_PORT": "0", "OSC_FAILED_KEYS_PER_ADDRESS": "0", "OSC_WORKERS": "1"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OSC_")}
    process = subprocess.Popen([server], cwd=directory, env=environment | settings, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if found := re.search(r"listening.*address=127\.0\.0\.1:(\d+)", line):
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return process, int(found[1])
    sys.exit("flood.py: the server did not start")


def derivations(port):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    return int(re.search(r"osc_key_derivations_completed_total (\d+)", text)[1])


def flood(port, number, statuses, is_done):
    connection = http.client.HTTPConnection("127.0.0.1", port, source_address=("127.0.0.2", 0))
    count = 0
    while not is_done.is_set():
        count += 1
        connection.request("GET", "/configs", headers={"X-User-Key": f"made-up-key-{number}-{count}"})
        response = connection.getresponse()
        response.read()
        statuses[response.status] += 1
        if response.status == 503:
            time.sleep(0.05)


def main():
    server = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else HERE.parent / "target/release/opensecureconf").resolve()
    with tempfile.TemporaryDirectory() as directory:
        process, port = start(server, directory)
        try:
            of_flood, is_done = collections.Counter(), threading.Event()
            threads = [threading.Thread(target=flood, args=(port, number, of_flood, is_done))
                       for number in range(CONNECTIONS)]
            [thread.start() for thread in threads]
            while not of_flood[503]:
                time.sleep(0.01)
            honest, times = collections.Counter(), []
            connection = http.client.HTTPConnection("127.0.0.1", port)
            started_at, before = time.monotonic(), derivations(port)
            while time.monotonic() - started_at < SECONDS:
                sent = time.monotonic()
                body = f'{{"key":"{len(times)}","value":1}}'
                connection.request("POST", "/configs", body, {"X-User-Key": f"honest-key-{len(times)}"})
                response = connection.getresponse()
                response.read()
                honest[response.status] += 1
                times.append(time.monotonic() - sent)
                if response.status == 503:
                    time.sleep(0.05)
            rate = (derivations(port) - before) / (time.monotonic() - started_at)
            is_done.set()
            [thread.join() for thread in threads]
        finally:
            process.terminate()
            process.wait()
    times.sort()
    print(f"honest {dict(honest)}, median {times[len(times) // 2] * 1000:.0f} ms, longest {times[-1] * 1000:.0f} ms")
    print(f"flood {dict(of_flood)}, {rate:.1f} derivations per second")


main()
