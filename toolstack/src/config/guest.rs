//! A guest's configuration from an `xl.cfg`: its `name`, `disk` and `vif`. As a guest here is a process, settings
//! of kernels, memory and processors have no effect: each is warned of.

use std::path::Path;

use super::cfg::{self, Atom, Setting, Value};
use super::{DiskSpec, VifSpec, Warnings};
use crate::error::{Error, Origin, Result};

/// The configuration of a guest.
///
/// ```
/// use toolstack::config::GuestConfig;
/// use toolstack::error::Origin;
///
/// let text = "name = 'web'\nmemory = 512\ndisk = ['/srv/a.img,,xvda']\nvif = ['bridge=xenbr0']";
/// let guest = GuestConfig::parse(&Origin::argument("web.cfg"), text).unwrap();
/// assert_eq!((guest.name.as_str(), guest.disks.len(), guest.vifs.len()), ("web", 1, 1));
/// assert_eq!(guest.warnings.lines(), ["web.cfg:2: memory: no effect: a guest here is a process"]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestConfig {
    /// The guest's name, which is unique.
    pub name: String,
    /// The guest's disks, each with a device number of its own.
    pub disks: Vec<DiskSpec>,
    /// The guest's interfaces, each with a device number of its own.
    pub vifs: Vec<VifSpec>,
    /// Settings that have no effect.
    pub warnings: Warnings,
}

/// Keys of xl.cfg(5) that do not apply to a process.
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
    /// Reads and parses a file.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read; [`Error::Input`] names line, key, value found and what is valid.
    pub fn read(path: &Path) -> Result<GuestConfig> {
        let text =
            std::fs::read_to_string(path).map_err(|e| Error::file(path, "reading the guest's cfg", e))?;
        GuestConfig::parse(&Origin::file(path), &text)
    }

    /// Parses the text of a file.
    ///
    /// # Errors
    /// [`Error::Input`] names line, key, value found and what is valid.
    pub fn parse(origin: &Origin, text: &str) -> Result<GuestConfig> {
        let mut warnings = Warnings::default();
        let mut name = None;
        let mut disks = Vec::new();
        let mut vifs = Vec::new();
        for setting in cfg::parse(origin, text)? {
            let here = origin.at(setting.line);
            match setting.key.as_str() {
                "name" => name = Some(name_of(&here, setting.value)?),
                "disk" => disks = specs(origin, setting, &mut warnings, DiskSpec::parse)?,
                "vif" => vifs = specs(origin, setting, &mut warnings, VifSpec::parse)?,
                key if NO_EFFECT.split_ascii_whitespace().any(|k| k == key) => {
                    warnings.no_effect(&here, key, "a guest here is a process");
                }
                key => {
                    return Err(here.invalid("syntax", key, "name, disk, vif, or another key of xl.cfg(5)"));
                }
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
        Value::Single(name) if is_guest_name(&name) => Ok(name),
        Value::Single(other) => Err(here.invalid("name", &other, expected)),
        Value::List(_) => Err(here.invalid("name", "a list", expected)),
    }
}

/// Whether this is a valid guest name: a number would be taken for a domain's id, and the name names a directory.
pub fn is_guest_name(name: &str) -> bool {
    let fine = |b: u8| b.is_ascii_alphanumeric() || b"-_.+".contains(&b);
    let number = name.bytes().all(|b| b.is_ascii_digit());
    (1..=64).contains(&name.len()) && name.bytes().all(fine) && !number && !name.starts_with(['.', '-'])
}

/// Parses each item of a list with `parse`, and pairs it with its line.
fn specs<T>(
    origin: &Origin,
    setting: Setting,
    warnings: &mut Warnings,
    parse: fn(&Origin, &str, &mut Warnings) -> Result<T>,
) -> Result<Vec<(Origin, T)>> {
    let Value::List(atoms) = setting.value else {
        return Err(origin.at(setting.line).invalid(&setting.key, "one value", "a list: [ '...', '...' ]"));
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
            return Err(here.invalid("disk: vdev", &disk.dev, "a device that no other disk is"));
        }
    }
    Ok(())
}

/// Numbers the interfaces: by their position in the list unless a number is given.
fn numbered(vifs: Vec<(Origin, VifSpec)>) -> Result<Vec<VifSpec>> {
    let mut numbered: Vec<VifSpec> = Vec::new();
    for (index, (here, mut vif)) in vifs.into_iter().enumerate() {
        let devid = vif.devid.unwrap_or(index as u32);
        if numbered.iter().any(|v| v.devid == Some(devid)) {
            return Err(here.invalid("vif: devid", &devid.to_string(), "a number that no other vif has"));
        }
        if vif.mac.is_some() && numbered.iter().any(|v| v.mac == vif.mac) {
            let mac = vif.mac.map(|m| m.to_string()).unwrap_or_default();
            return Err(here.invalid("vif: mac", &mac, "an address that no other vif has"));
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
    fn xl_cfg_with_disks_and_vifs_is_parsed() {
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
    fn invalid_item_is_rejected_with_its_line() {
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
