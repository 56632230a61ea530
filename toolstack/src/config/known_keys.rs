//! The keys of xl.cfg(5), and which of them may have been meant by another word.

/// Keys of xl.cfg(5) that say how a virtual machine is made, of Xen 4.2 to 4.20, and those that xl has read without the
/// manual's mentioning them.
const OF_MACHINES: &str = "\
 acpi acpi_firmware acpi_laptop_slate acpi_s3 acpi_s4 altp2m altp2mhvm apic argo arm_gic arm_sci bios bios_path_override \
 blkdev_start boot bootloader bootloader_args bootloader_restrict bootloader_user builder cap channel claim_mode cmdline \
 cpu_weight cpuid cpus cpus_soft device_model device_model_args device_model_args_hvm device_model_args_pv \
 device_model_override device_model_stubdomain_cmdline device_model_stubdomain_kernel \
 device_model_stubdomain_memory device_model_stubdomain_override device_model_stubdomain_ramdisk \
 device_model_stubdomain_seclabel device_model_stubdomain_init_seclabel device_model_user device_model_version device_tree \
 disable_migrate display dm_restrict driver_domain dtdev e820_host event_channels exec_ssidref extra fda fdb firmware \
 firmware_override force_assign_without_disable gfx_passthru gic_version hap hdtype hpet init_seclabel iomem ioports irqs \
 kernel keymap latency llc_colors localtime machine max_event_channels max_grant_frames max_grant_version \
 max_maptrack_frames maxmem maxvcpus mca_caps memory mmio_hole mmio_hole_size ms_vm_genid msr_relaxed msitranslate nestedhvm \
 nodes nographic nomce nomigrate nr_spis nx on_crash on_poweroff on_reboot on_shutdown on_soft_reset on_watchdog oos opengl \
 p9 pae passthrough pci pci_msitranslate pci_permissive pci_power_mgmt pci_seize period pool power_mgmt pvcalls pvh pvshim \
 pvshim_cmdline pvshim_extra pvshim_path ramdisk rdm rdm_mem_boundary root rtc_timeoffset run_hotplug_scripts sched sdl \
 seclabel serial shadow_memory slice smbios smbios_firmware smm soundhw spice spice_clipboard_sharing \
 spice_image_compression spice_streaming_video spiceagent_mouse spicedisable_ticketing spicehost spicepasswd spiceport \
 spicetls_port spiceusbredirection spicevdagent ssidref stdvga stubdomain_cmdline stubdomain_kernel stubdomain_memory \
 stubdomain_ramdisk suppress_spurious_page_faults sve system_firmware tee timer_mode tpm trap_unmapped_accesses tsc_mode \
 type uefi usb usbctrl usbdev usbdevice usbversion uuid vcpus vdispl vendor_device vfb vga videoram viommu virtio viridian \
 vkb vkb_device vmtrace_buf_kb vnc vncconsole vncdisplay vnclisten vncpasswd vncunused vncviewer vnuma vpmu vpt_align vsnd \
 vtpm vuart xauthority xen_platform_pci xend_suspend_evtchn_compat xenstore_feature_mask";

/// The keys that have an effect here. `uid` is ours.
const OF_DEVICES: [&str; 4] = ["name", "disk", "vif", "uid"];

/// Whether xl knows this key, which has no effect here.
pub(super) fn is_of_machines(key: &str) -> bool {
    OF_MACHINES.split_ascii_whitespace().any(|known| known == key)
}

/// The key that may have been meant by one that xl does not know.
pub(super) fn meant(key: &str) -> Option<&'static str> {
    let known: Vec<&'static str> =
        OF_DEVICES.into_iter().chain(OF_MACHINES.split_ascii_whitespace()).collect();
    closest(key, &known)
}

/// The word that differs from `word` by few letters only.
pub(super) fn closest(word: &str, known: &[&'static str]) -> Option<&'static str> {
    let word = word.to_ascii_lowercase().replace('-', "_");
    // In a short word each letter counts more.
    let most = match word.len() {
        0..=2 => 0,
        3..=6 => 1,
        _ => 2,
    };
    let distance = |known: &&'static str| (strsim::osa_distance(&word, known), *known);
    let (distance, closest) = known.iter().map(distance).min_by_key(|(distance, _)| *distance)?;
    (distance <= most).then_some(closest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_close_to_a_key_is_taken_for_it_and_no_other() {
        for (word, key) in [
            ("dsik", "disk"),
            ("vifs", "vif"),
            ("nmae", "name"),
            ("memroy", "memory"),
            ("Memory", "memory"),
            ("on-crash", "on_crash"),
            ("bootlaoder", "bootloader"),
        ] {
            assert_eq!(meant(word), Some(key), "{word}");
        }
        for word in ["dhcp", "hostname", "ne2000", "arch_libdir", "x", ""] {
            assert_eq!(meant(word), None, "{word}");
        }
    }

    #[test]
    fn keys_are_listed_once() {
        let keys: Vec<_> = OF_MACHINES.split_ascii_whitespace().collect();
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(keys.len(), distinct.len());
        assert!(OF_DEVICES.iter().all(|key| !is_of_machines(key)));
    }
}
