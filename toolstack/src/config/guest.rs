//! A guest as an `xl.cfg` describes it: its `name`, `disk` and `vif`. A guest here is a process, so that what
//! xl.cfg says of kernels, memory and processors has no effect, and each such line is told so.

use std::path::Path;

use super::cfg::{self, Atom, Setting, Value};
use super::{DiskSpec, VifSpec, Warnings};
use crate::error::{Error, Origin, Result};

/// A guest to be created.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestConfig {
    /// Its name; no other guest's.
    pub name: String,
    /// Its disks, no two with one number.
    pub disks: Vec<DiskSpec>,
    /// Its interfaces, each with a number of its own.
    pub vifs: Vec<VifSpec>,
    /// What has no effect.
    pub warnings: Warnings,
}

/// Keys of xl.cfg(5) that a process has no use for.
const NO_EFFECT: &str = "\
 acpi acpi_firmware altp2m altp2mhvm apic arm_gic argo bios blkdev_start boot bootloader \
 bootloader_args bootloader_restrict bootloader_user builder cap channel claim_mode cmdline cpu_weight \
 cpuid cpus cpus_soft device_model_args device_model_args_hvm device_model_args_pv \
 device_model_override device_model_stubdomain_cmdline device_model_stubdomain_kernel \
 device_model_stubdomain_memory device_model_stubdomain_override device_model_stubdomain_ramdisk \
 device_model_stubdomain_seclabel device_model_user device_model_version device_tree dm_restrict \
 driver_domain dtdev e820_host event_channels exec_ssidref extra firmware firmware_override \
 gfx_passthru hap hdtype hpet init_seclabel iomem ioports irqs kernel keymap llc_colors localtime \
 max_grant_frames max_grant_version max_maptrack_frames maxmem maxvcpus mca_caps memory mmio_hole \
 ms_vm_genid msr_relaxed nestedhvm nodes nographic nomigrate nomce on_crash on_poweroff on_reboot \
 on_soft_reset on_watchdog opengl p9 pae passthrough pci pci_msitranslate pci_permissive pci_power_mgmt \
 pci_seize pool pvcalls pvh pvshim pvshim_cmdline pvshim_extra pvshim_path ramdisk rdm rdm_mem_boundary \
 root rtc_timeoffset sched sdl seclabel serial shadow_memory smbios smbios_firmware soundhw spice \
 spice_clipboard_sharing spice_image_compression spice_streaming_video spiceagent_mouse \
 spicedisable_ticketing spicehost spicepasswd spiceport spicetls_port spiceusbredirection spicevdagent \
 stdvga suppress_spurious_page_faults system_firmware tee timer_mode trap_unmapped_accesses tsc_mode \
 type usb usbctrl usbdev usbdevice usbversion uuid vcpus vdispl vendor_device vfb vga videoram virtio \
 viridian vkb vmtrace_buf_kb vnc vncconsole vncdisplay vnclisten vncpasswd vncunused vnuma vpmu \
 vpt_align vsnd vtpm vuart xen_platform_pci xend_suspend_evtchn_compat";

impl GuestConfig {
    /// Reads a file.
    ///
    /// # Errors
    /// The file's, and [`Error::Input`] with file, line, key, what stands there and what should.
    pub fn read(path: &Path) -> Result<GuestConfig> {
        let text =
            std::fs::read_to_string(path).map_err(|e| Error::file(path, "reading the guest's cfg", e))?;
        GuestConfig::parse(&Origin::file(path), &text)
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// As [`GuestConfig::read`].
    pub fn parse(origin: &Origin, text: &str) -> Result<GuestConfig> {
        let mut warnings = Warnings::default();
        let (mut name, mut disks, mut vifs) = (None, Vec::new(), Vec::new());
        for setting in cfg::parse(origin, text)? {
            let here = origin.at(setting.line);
            match setting.key.as_str() {
                "name" => name = Some(name_of(&here, setting.value)?),
                "disk" => disks = specs(origin, setting, &mut warnings, DiskSpec::parse)?,
                "vif" => vifs = specs(origin, setting, &mut warnings, VifSpec::parse)?,
                key if NO_EFFECT.split_ascii_whitespace().any(|k| k == key) => {
                    warnings.no_effect(&here, key, "a guest here is a process");
                }
                key => return Err(here.wrong("syntax", key, "name, disk, vif, or another key of xl.cfg(5)")),
            }
        }
        let name = name.ok_or_else(|| origin.missing("name", "the guest's name"))?;
        distinct_disks(&disks)?;
        let vifs = numbered(vifs)?;
        Ok(GuestConfig { name, disks: disks.into_iter().map(|(_, d)| d).collect(), vifs, warnings })
    }
}

fn name_of(here: &Origin, value: Value) -> Result<String> {
    let expected = "a name: letters, digits, - _ . + only, not a number, at most 64";
    match value {
        Value::One(name) if is_guest_name(&name) => Ok(name),
        Value::One(other) => Err(here.wrong("name", &other, expected)),
        Value::List(_) => Err(here.wrong("name", "a list", expected)),
    }
}

/// Whether a guest can be called so: a number would be a domain's id, and the name is a directory's too.
pub fn is_guest_name(name: &str) -> bool {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"-_.+".contains(&b);
    let number = name.bytes().all(|b| b.is_ascii_digit());
    (1..=64).contains(&name.len()) && name.bytes().all(fine) && !number && !name.starts_with(['.', '-'])
}

/// The items of a list, each read by `parse` and kept with its place.
fn specs<T>(
    origin: &Origin,
    setting: Setting,
    warnings: &mut Warnings,
    parse: fn(&Origin, &str, &mut Warnings) -> Result<T>,
) -> Result<Vec<(Origin, T)>> {
    let Value::List(atoms) = setting.value else {
        return Err(origin.at(setting.line).wrong(&setting.key, "one value", "a list: [ '...', '...' ]"));
    };
    let read = |Atom { text, line }: Atom| {
        let here = origin.at(line);
        parse(&here, &text, warnings).map(|spec| (here, spec))
    };
    atoms.into_iter().map(read).collect()
}

fn distinct_disks(disks: &[(Origin, DiskSpec)]) -> Result<()> {
    for (at, (here, disk)) in disks.iter().enumerate() {
        if disks[..at].iter().any(|(_, earlier)| earlier.vdev == disk.vdev) {
            return Err(here.wrong("disk: vdev", &disk.dev, "a device that no other disk is"));
        }
    }
    Ok(())
}

/// Gives each interface its place in the list as its number, unless it says one.
fn numbered(vifs: Vec<(Origin, VifSpec)>) -> Result<Vec<VifSpec>> {
    let mut numbered: Vec<VifSpec> = Vec::new();
    for (index, (here, mut vif)) in vifs.into_iter().enumerate() {
        let devid = vif.devid.unwrap_or(index as u32);
        if numbered.iter().any(|v| v.devid == Some(devid)) {
            return Err(here.wrong("vif: devid", &devid.to_string(), "a number that no other vif has"));
        }
        if vif.mac.is_some() && numbered.iter().any(|v| v.mac == vif.mac) {
            let mac = vif.mac.map(|m| m.to_string()).unwrap_or_default();
            return Err(here.wrong("vif: mac", &mac, "an address that no other vif has"));
        }
        vif.devid = Some(devid);
        numbered.push(vif);
    }
    Ok(numbered)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<GuestConfig> {
        GuestConfig::parse(&Origin::file(Path::new("g.cfg")), text)
    }

    #[test]
    fn an_xl_cfg_of_a_usual_guest() {
        let guest = parse(
            "name = 'web'\nmemory = 512\nkernel = '/boot/vmlinuz'\n\
             disk = [ '/img/root,raw,xvda,rw',\n 'vdev=xvdb,access=ro,target=/img/data' ]\n\
             vif = [ 'mac=00:16:3e:00:00:01', '', 'devid=7,bridge=br1' ]\n",
        )
        .unwrap();
        assert_eq!(guest.name, "web");
        let disks: Vec<_> = guest.disks.iter().map(|d| (d.dev.as_str(), d.vdev, d.writable)).collect();
        assert_eq!(disks, [("xvda", 51712, true), ("xvdb", 51728, false)]);
        let vifs: Vec<_> = guest.vifs.iter().map(|v| (v.devid.unwrap(), v.bridge.as_str())).collect();
        assert_eq!(vifs, [(0, "xenbr0"), (1, "xenbr0"), (7, "br1")]);
        let [memory, kernel] = guest.warnings.lines() else { panic!("{:?}", guest.warnings) };
        assert_eq!(memory, "g.cfg:2: memory: no effect: a guest here is a process");
        assert!(kernel.starts_with("g.cfg:3: kernel: "));
    }

    #[test]
    fn errors_name_the_line_of_the_item() {
        let cases = [
            ("name = 'a'\ndisk = [\n'/a,,xvda',\n'/b,,xvda,rx' ]", r#"g.cfg:4: disk: access: found "rx""#),
            (
                "name = 'a'\ndisk = [ '/a,,xvda',\n'/b,,d0p0' ]",
                r#"g.cfg:3: disk: vdev: found "d0p0", expected a dev"#,
            ),
            ("disk = '/a,,xvda'", r#"g.cfg:1: disk: found "one value", expected a list"#),
            ("disk = []", "g.cfg: name: missing, expected the guest's name"),
            ("name = 'a'\nvif = ['devid=1', 'x=y']", r#"g.cfg:2: vif: found "x=y""#),
            ("name = 'a'\nvif = ['devid=1', '']", r#"g.cfg:2: vif: devid: found "1""#),
            ("name = 'a'\nvif = ['mac=00:16:3e:0:0:1']", "g.cfg:2: vif: mac: found"),
            ("name = '../x'", r#"g.cfg:1: name: found "../x", expected a name"#),
            ("name = 7", r#"g.cfg:1: name: found "7", expected a name"#),
            ("nmae = 'a'", r#"g.cfg:1: syntax: found "nmae", expected name, disk, vif"#),
        ];
        for (text, part) in cases {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }
}
