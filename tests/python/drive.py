"""Drives `iris_client.Client` by lines of JSON: the first line on stdin is its configuration, each later one a call; each
event is a line on stdout. It ends when the client is closed: by `{"call": "close"}`, at the end of stdin, or by a server.

By hand, beside `iris dev`:

    (echo '{"token": "'$(iris token --user bob)'", "device": "phone", "endpoints": {"us-east": ["127.0.0.1:7101"]},
      "ca": "data/ca/ca.pem", "server_name": "localhost"}' | tr -d '\\n'; echo; cat) | python3 tests/python/drive.py
    {"call": "send", "to": "alice", "body": "hello"}
"""

import asyncio
import json
import sys

from iris_client import Client, Memory


async def lines():
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield json.loads(line)


def tell(event):
    print(json.dumps(event), flush=True)


async def calls(client, commands):
    async for command in commands:
        match command.pop("call"):
            case "send":
                client.send(command["to"], command["body"].encode())
            case "consume":
                client.consume(command["origin"], command["sequence"])
                tell({"event": "consumed"})
            case "watch":
                client.watch(*command["users"])
            case "status":
                client.set_status(command["status"], command["text"])
            case "cut":
                client.connection.cut()
            case "mute":
                client.connection.mute()
            case "deafen":
                client.connection.deafen()
            case "close":
                return


async def main():
    commands = lines()
    configuration = await anext(commands)
    memory = Memory.load(configuration.pop("memory", None))
    client = Client(**configuration, tell=tell, memory=memory)
    running, called = asyncio.create_task(client.run()), asyncio.create_task(calls(client, commands))
    await asyncio.wait([running, called], return_when=asyncio.FIRST_COMPLETED)
    for task in (running, called):
        task.cancel()
    for problem in await asyncio.gather(running, called, return_exceptions=True):
        if isinstance(problem, Exception):
            raise problem
    tell({"event": "closed"})


asyncio.run(main())
