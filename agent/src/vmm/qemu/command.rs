//! QEMU's command line. Pure.
//!
//! Nothing on it is a path or a secret: every file comes as a descriptor, in the order of [`Descriptor`]. What
//! decides whether a snapshot fits is kept apart in [`hardware`].

use super::Accelerator;
use crate::host::spawn::FIRST_DESCRIPTOR;
use crate::vmm::Geometry;

/// TCG's default of 1 GiB would count against the guest's limit.
pub(super) const TRANSLATION_BUFFER_MIB: u64 = 64;
/// What QEMU keeps of the guest's serial console.
pub(super) const CONSOLE_BYTES: usize = 64 * 1024;
/// Character device of the console, for `ringbuf-read`.
pub(super) const CONSOLE: &str = "console";

/// The descriptors a VMM inherits, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Descriptor {
    Control,
    Kernel,
    Initramfs,
    Memory,
    Base,
    DiskReadWrite,
    DiskReadOnly,
    Tap,
}

impl Descriptor {
    fn number(self) -> i32 {
        FIRST_DESCRIPTOR + self as i32
    }

    fn path(self) -> String {
        format!("/proc/self/fd/{}", self.number())
    }
}

/// What a command line depends on beside constants.
#[derive(Debug)]
pub(super) struct Command<'a> {
    pub(super) name: &'a str,
    pub(super) accelerator: Accelerator,
    pub(super) geometry: Geometry,
    /// Of the image's manifest.
    pub(super) command_line: &'a str,
    pub(super) with_tap: bool,
    /// Wait for device state instead of booting.
    pub(super) restore: bool,
}

/// The guest kernel's command line. A fixed TSC frequency is for emulation alone.
pub(super) fn command_line(accelerator: Accelerator, of_image: &str) -> String {
    let emulated = accelerator == Accelerator::Tcg;
    let words =
        of_image.split_ascii_whitespace().filter(|word| emulated || !word.starts_with("tsc_early_khz="));
    words.collect::<Vec<_>>().join(" ")
}

/// Everything the guest sees of its machine, except for what descriptors hold.
pub(super) fn hardware(accelerator: Accelerator, geometry: Geometry) -> Vec<String> {
    let Geometry { vcpus, memory_mib } = geometry;
    let cpu = match accelerator {
        // Five-level paging only makes every emulated page walk longer.
        Accelerator::Tcg => "max,la57=off",
        Accelerator::Kvm => "host",
    };
    let machine = "microvm,rtc=on,suppress-vmdesc=on,memory-backend=ram";
    [
        ["-M", machine],
        ["-cpu", cpu],
        ["-m", &memory_mib.to_string()],
        ["-smp", &vcpus.to_string()],
        // A device state without this section is what `xen-save-devices-state` writes.
        ["-global", "migration.send-configuration=off"],
        ["-device", "virtio-blk-device,drive=base,serial=base"],
        ["-device", "virtio-blk-device,drive=rw,serial=rw"],
        ["-device", "virtio-rng-device"],
    ]
    .into_iter()
    .flatten()
    .map(str::to_owned)
    .collect()
}

/// Arguments after the program's name.
pub(super) fn arguments(command: &Command<'_>) -> Vec<String> {
    let Command { accelerator, geometry, .. } = *command;
    let accel = match accelerator {
        Accelerator::Tcg => format!("tcg,tb-size={TRANSLATION_BUFFER_MIB}"),
        Accelerator::Kvm => "kvm".to_owned(),
    };
    let memory = format!(
        "memory-backend-file,id=ram,size={}M,mem-path={},share=off",
        geometry.memory_mib,
        Descriptor::Memory.path()
    );
    let control = format!("socket,id=control,fd={},server=on,wait=off", Descriptor::Control.number());
    let console = format!("ringbuf,id={CONSOLE},size={CONSOLE_BYTES}");
    let set = |descriptor: Descriptor, set: u32| format!("fd={},set={set}", descriptor.number());
    let mut list: Vec<String> =
        ["-nodefaults", "-no-user-config", "-no-reboot", "-S"].map(str::to_owned).into();
    let mut put = |name: &str, value: &str| list.extend([name.to_owned(), value.to_owned()]);
    put("-name", command.name);
    put("-display", "none");
    put("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    put("-accel", &accel);
    put("-object", &memory);
    put("-chardev", &control);
    put("-mon", "chardev=control,mode=control");
    put("-chardev", &console);
    put("-serial", &format!("chardev:{CONSOLE}"));
    put("-kernel", &Descriptor::Kernel.path());
    put("-initrd", &Descriptor::Initramfs.path());
    put("-append", &command_line(accelerator, command.command_line));
    put("-add-fd", &set(Descriptor::Base, 1));
    // Two of the writable disk: QEMU opens it read-only until a restored guest is activated.
    put("-add-fd", &set(Descriptor::DiskReadWrite, 2));
    put("-add-fd", &set(Descriptor::DiskReadOnly, 2));
    put("-drive", "if=none,id=base,file=/dev/fdset/1,format=raw,read-only=on,file.locking=off");
    put(
        "-drive",
        "if=none,id=rw,file=/dev/fdset/2,format=raw,file.locking=off,discard=unmap,detect-zeroes=unmap",
    );
    list.extend(hardware(accelerator, geometry));
    let mut put = |name: &str, value: &str| list.extend([name.to_owned(), value.to_owned()]);
    if command.with_tap {
        put("-netdev", &format!("tap,id=net,fd={}", Descriptor::Tap.number()));
        put("-device", "virtio-net-device,netdev=net,mac=02:00:00:00:00:02");
    }
    if command.restore {
        put("-incoming", "defer");
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry { vcpus: 1, memory_mib: 256 };

    fn command(accelerator: Accelerator, restore: bool) -> Command<'static> {
        Command {
            name: "roost-01j",
            accelerator,
            geometry: GEOMETRY,
            command_line: "console=ttyS0 quiet\ntsc_early_khz=2600000 no_timer_check",
            with_tap: true,
            restore,
        }
    }

    #[test]
    fn the_emulated_command_line_is_as_written_down() {
        let golden = "\
-nodefaults -no-user-config -no-reboot -S -name roost-01j -display none \
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny \
-accel tcg,tb-size=64 \
-object memory-backend-file,id=ram,size=256M,mem-path=/proc/self/fd/6,share=off \
-chardev socket,id=control,fd=3,server=on,wait=off -mon chardev=control,mode=control \
-chardev ringbuf,id=console,size=65536 -serial chardev:console \
-kernel /proc/self/fd/4 -initrd /proc/self/fd/5 \
-append console=ttyS0 quiet tsc_early_khz=2600000 no_timer_check \
-add-fd fd=7,set=1 -add-fd fd=8,set=2 -add-fd fd=9,set=2 \
-drive if=none,id=base,file=/dev/fdset/1,format=raw,read-only=on,file.locking=off \
-drive if=none,id=rw,file=/dev/fdset/2,format=raw,file.locking=off,discard=unmap,detect-zeroes=unmap \
-M microvm,rtc=on,suppress-vmdesc=on,memory-backend=ram -cpu max,la57=off -m 256 -smp 1 \
-global migration.send-configuration=off \
-device virtio-blk-device,drive=base,serial=base -device virtio-blk-device,drive=rw,serial=rw \
-device virtio-rng-device \
-netdev tap,id=net,fd=10 -device virtio-net-device,netdev=net,mac=02:00:00:00:00:02";
        assert_eq!(arguments(&command(Accelerator::Tcg, false)).join(" "), golden);
        let restored = arguments(&command(Accelerator::Tcg, true)).join(" ");
        assert_eq!(restored, format!("{golden} -incoming defer"));
    }

    #[test]
    fn kvm_keeps_the_hosts_own_clock() {
        let arguments = arguments(&command(Accelerator::Kvm, false));
        assert!(arguments.iter().any(|argument| argument == "kvm"));
        assert!(arguments.iter().any(|argument| argument == "console=ttyS0 quiet no_timer_check"));
    }

    #[test]
    fn a_guest_is_never_started_by_its_command_line() {
        for restore in [false, true] {
            assert!(arguments(&command(Accelerator::Tcg, restore)).iter().any(|argument| argument == "-S"));
        }
    }
}
