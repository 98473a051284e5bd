"""Opens connections and says nothing on them: idle.py ADDRESS PORT COUNT. Prints how many opened, then holds them."""
import select, signal, socket, sys, time

address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
held, opened = [], 0
poll = select.poll()
for _ in range(count):
    stream = socket.socket()
    stream.setblocking(False)
    stream.connect_ex((address, port))
    poll.register(stream, select.POLLOUT)
    held.append(stream)
deadline = time.monotonic() + 6
while opened < count and time.monotonic() < deadline:
    for number, event in poll.poll(200):
        opened += not event & (select.POLLERR | select.POLLHUP)
        poll.unregister(number)
print(opened, flush=True)
signal.pause()
