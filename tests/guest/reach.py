"""Tries every address it is given, in every way a program can, and prints what came of it as JSON.

Argument: a JSON object {"tcp": [[address, port]...], "http": [...], "udp": [...],
"dns": [[server, name, type, "udp" or "tcp"]...]}; what is not there is not tried.
"""
import json, os, socket, struct, sys

PATIENCE_S = 8
# Datagrams that nobody answers: waited for together.
UDP_PATIENCE_S = 2


def outcome(work):
    try:
        return work()
    except ConnectionRefusedError:
        return "refused"
    except (ConnectionResetError, BrokenPipeError):
        return "reset"
    except (socket.timeout, TimeoutError):
        return "silent"
    except OSError as error:
        return "unreachable" if error.errno in (101, 113, 99, 22) else os.strerror(error.errno)


def tcp(address, port, words=b"\0no protocol"):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def work():
        with socket.socket(family, socket.SOCK_STREAM) as stream:
            stream.settimeout(PATIENCE_S)
            stream.connect(socket.getaddrinfo(address, port, family)[0][4])
            stream.sendall(words)
            return stream.recv(64).decode("latin-1").split("\r\n")[0] or "closed"

    return outcome(work)


def udp(targets):
    sockets = []
    results = ["silent"] * len(targets)
    for index, (address, port) in enumerate(targets):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        datagram = socket.socket(family, socket.SOCK_DGRAM)
        datagram.settimeout(UDP_PATIENCE_S if index == 0 else 0.05)
        sockets.append(datagram)

        def send():
            datagram.connect(socket.getaddrinfo(address, port, family)[0][4])
            datagram.send(b"hello")
            return "silent"

        results[index] = outcome(send)
    for index, datagram in enumerate(sockets):
        if results[index] == "silent":
            results[index] = outcome(lambda: "answered" if datagram.recv(64) else "closed")
    return results


def query(name, kind):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", kind, 1)


def dns(server, name, kind, transport):
    packet = query(name, kind)

    def over_udp():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
            datagram.settimeout(PATIENCE_S)
            datagram.connect((server, 53))
            datagram.send(packet)
            return datagram.recv(4096)

    def over_tcp():
        with socket.create_connection((server, 53), PATIENCE_S) as stream:
            stream.sendall(struct.pack(">H", len(packet)) + packet)
            return stream.makefile("rb").read(2 + 12)[2:]

    def work():
        reply = over_tcp() if transport == "tcp" else over_udp()
        _, flags, _, answers = struct.unpack(">HHHH", reply[:8])
        return "code %d, %d answers" % (flags & 15, answers)

    return outcome(work)


def http(address, port):
    host = "[%s]" % address if ":" in address else address
    return tcp(address, port, ("GET / HTTP/1.1\r\nHost: %s:%d\r\n\r\n" % (host, port)).encode())


wish = json.loads(sys.argv[1])
print(json.dumps({
    "tcp": [tcp(*target) for target in wish.get("tcp", [])],
    "http": [http(*target) for target in wish.get("http", [])],
    "udp": udp(wish.get("udp", [])),
    "dns": [dns(*target) for target in wish.get("dns", [])],
}))
