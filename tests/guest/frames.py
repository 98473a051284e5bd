"""As root: sends frames no honest kernel sends, and prints as JSON what came back.

"control" is what an honest question brought, so that silence afterwards means something.
"""
import json, os, random, socket, struct, threading, time

OWN_MAC, GATEWAY_MAC = bytes([2, 0, 0, 0, 0, 2]), bytes([2, 0, 0, 0, 0, 1])
EVERYONE = b"\xff" * 6
OTHER_MAC = bytes([2, 0, 0, 0, 0, 9])
IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
# Quiet for so long: nothing is on its way any more.
QUIET_S = 1.5
FLOOD = 1000

device = next(name for _, name in socket.if_nameindex() if name != "lo")
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
wire.bind((device, 0))
heard, last = [], [time.monotonic()]


def listen():
    while True:
        frame, (_, _, kind, _, _) = wire.recvfrom(2048)
        if kind == socket.PACKET_OUTGOING:
            continue
        ethertype = struct.unpack(">H", frame[12:14])[0]
        if ethertype == IPV4:
            source, target = socket.inet_ntoa(frame[26:30]), socket.inet_ntoa(frame[30:34])
            heard.append("ip protocol %d from %s to %s" % (frame[23], source, target))
        elif ethertype == ARP:
            operation = struct.unpack(">H", frame[20:22])[0]
            target = socket.inet_ntoa(frame[38:42])
            # What this guest's own kernel asked for is answered, and may be.
            if (operation, target) == (2, "10.0.0.2"):
                continue
            heard.append("arp %d to %s" % (operation, target))
        else:
            heard.append("ethertype %04x" % ethertype)
        last[0] = time.monotonic()


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(">%dH" % (len(data) // 2), data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def packet(protocol, payload, source="10.0.0.2", target="10.0.0.1", options=b"", fragment=0):
    words = 5 + len(options) // 4
    length = words * 4 + len(payload)
    head = struct.pack(">BBHHHBBH", 0x40 | words, 0, length, random.getrandbits(16), fragment, 64, protocol, 0)
    head += socket.inet_aton(source) + socket.inet_aton(target) + options
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + payload


def syn(port, source="10.0.0.2", target="10.0.0.1", **more):
    head = struct.pack(">HHIIBBHHH", random.randint(20000, 60000), port, 1, 0, 0x50, 2, 1024, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(target) + struct.pack(">BBH", 0, 6, len(head))
    head = head[:16] + struct.pack(">H", checksum(pseudo + head)) + head[18:]
    return packet(6, head, source, target, **more)


def udp(port, payload, **more):
    return packet(17, struct.pack(">HHHH", 5353, port, 8 + len(payload), 0) + payload, **more)


def echo(size=8):
    body = struct.pack(">BBHHH", 8, 0, 0, 1, 1) + b"x" * size
    return body[:2] + struct.pack(">H", checksum(body)) + body[4:]


def arp(operation, mac, address, target):
    sender = mac + socket.inet_aton(address)
    return struct.pack(">HHBBH", 1, IPV4, 6, 4, operation) + sender + b"\0" * 6 + socket.inet_aton(target)


def send(payload, ethertype=IPV4, source=OWN_MAC, target=GATEWAY_MAC):
    try:
        wire.send(target + source + struct.pack(">H", ethertype) + payload)
    except OSError as error:
        # The device's queue is full: part of a flood.
        if error.errno != 105:
            raise


def until_quiet():
    last[0] = time.monotonic()
    while time.monotonic() - last[0] < QUIET_S:
        time.sleep(0.05)


def dns(name):
    labels = b"".join(bytes([len(label)]) + label for label in name.split(b"."))
    return struct.pack(">HHHHHH", 7, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">HH", 1, 1)


threading.Thread(target=listen, daemon=True).start()
send(udp(53, dns(b"control.example")))
send(arp(1, OWN_MAC, "10.0.0.2", "10.0.0.1"), ARP, target=EVERYONE)
until_quiet()
control, heard = heard, []

for address in ["10.0.0.1", "10.0.0.3", "127.0.0.1", "192.0.2.1"]:
    # As somebody else: by address, by hardware address, by both.
    for source in ["10.0.0.9", "10.0.0.1", "127.0.0.1", "0.0.0.0"]:
        send(syn(443, source, address))
        send(syn(443, source, address), source=OTHER_MAC)
        send(udp(53, dns(b"spoofed.example"), source=source, target=address))
    send(syn(443, target=address), source=OTHER_MAC)
    send(udp(53, dns(b"spoofed.example"), target=address), source=OTHER_MAC)
    # Whatever is neither TCP nor UDP, and UDP to where nothing may be.
    for protocol in [1, 2, 4, 41, 47, 50, 51, 89, 132, 136, 255]:
        send(packet(protocol, echo() if protocol == 1 else b"x" * 32, target=address))
    for port in [443, 123, 18080, 1021, 67]:
        send(udp(port, b"hello", target=address))
    # In pieces: complete, overlapping, and never complete.
    body = echo(24)
    send(packet(1, body[:16], target=address, fragment=0x2000))
    send(packet(1, body[16:], target=address, fragment=2))
    send(packet(1, body[8:], target=address, fragment=1))
    for _ in range(50):
        send(udp(53, b"x" * 1000, target=address, fragment=0x2000))
    # With a route of its own: loose and strict source routing, and the record of one.
    for option in [131, 137, 7]:
        route = bytes([option, 7, 4]) + socket.inet_aton("10.0.0.1") + b"\0"
        send(packet(1, echo(), target=address, options=route))
        if option != 7:
            send(syn(443, target=address, options=route))
# Neighbours, routers and servers of the wire, invented.
send(udp(67, b"\1\1\6\0" + os.urandom(236), source="0.0.0.0", target="255.255.255.255"), target=EVERYONE)
for kind in [128, 133, 134, 135, 136]:
    head = struct.pack(">IHBB", 6 << 28, 8, 58, 255)
    ends = bytes.fromhex("fe800000000000000000000000000002ff020000000000000000000000000001")
    send(head + ends + bytes([kind, 0, 0, 0, 0, 0, 0, 0]), IPV6, target=bytes.fromhex("333300000001"))
for mac in [OWN_MAC, OTHER_MAC]:
    for address in ["10.0.0.1", "10.0.0.9"]:
        send(arp(2, mac, address, address), ARP, mac, EVERYONE)
        send(arp(1, mac, address, "10.0.0.1"), ARP, mac, EVERYONE)
for number in range(FLOOD):
    mac = bytes([2, 1]) + struct.pack(">I", number)
    send(arp(1 + number % 2, mac, "10.0.%d.%d" % (number >> 8, number & 255), "10.0.0.1"), ARP, mac, EVERYONE)
until_quiet()
print(json.dumps({"control": control, "heard": sorted(set(heard))}))
