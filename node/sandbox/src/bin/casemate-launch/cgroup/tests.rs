use super::*;

/// A cgroup file system of version 2 in a folder, as far as this module uses it.
fn version_2_tree(controllers: &str) -> tempfile::TempDir {
    let mount = tempfile::tempdir().unwrap();
    fs::write(mount.path().join("cgroup.procs"), "").unwrap();
    fs::write(mount.path().join("cgroup.controllers"), controllers).unwrap();
    mount
}

fn number(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap()
}

fn read(folder: &Path, file: &str) -> String {
    fs::read_to_string(folder.join(file)).unwrap_or_default()
}

#[test]
fn our_place_is_the_path_or_the_top_of_what_we_see() {
    let mount = tempfile::tempdir().unwrap();
    let root = mount.path().to_owned();
    fs::write(root.join("cgroup.procs"), "").unwrap();
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::write(root.join("a/b/cgroup.procs"), "").unwrap();
    let text = "8:pids:/a/b\n4:cpu,memory:/elsewhere\n0::/a/b\n";
    assert_eq!(place(&root, text, "pids"), Some(root.join("a/b")));
    assert_eq!(place(&root, text, "memory"), Some(root.clone()));
    assert_eq!(place(&root, text, ""), Some(root.join("a/b")));
    assert_eq!(place(&root, text, "io"), None);
    assert_eq!(place(&root.join("absent"), text, "pids"), None);
    // The path that the child of a launch sees.
    let text = "0::/a/b/casemate.launch\n";
    assert_eq!(place(&root, text, ""), Some(root.join("a/b/")));
}

#[test]
fn version_2_needs_memory_and_pids_and_goes_without_cpu() {
    for (controllers, expected) in [
        ("hugetlb\n", None),
        ("memory cpu\n", None),
        ("memory pids\n", Some(false)),
        ("cpu memory pids\n", Some(true)),
    ] {
        let mount = version_2_tree(controllers);
        let found = version_2(mount.path(), "0::/\n").map(|group| group.cpu.is_some());
        assert_eq!(found, expected, "{controllers}");
        let is_moved = mount.path().join(LAUNCH).join("cgroup.procs").exists();
        assert_eq!(is_moved, expected.is_some(), "{controllers}");
    }
}

#[test]
fn in_version_2_programs_weigh_more_and_each_tenant_has_a_group_with_a_limit() {
    let mount = version_2_tree("cpu memory pids\n");
    let own = find(mount.path(), "0::/\n").unwrap();
    let mut cgroups = Cgroups(Some(Tree::make(&own, 7, Some(1000)).unwrap()));
    let of = |path: &str| mount.path().join(path);
    assert_eq!(read(&of(LAUNCH), "cpu.weight"), "400");
    assert_eq!(read(&of("casemate-7.programs"), "cpu.weight"), "400");
    assert_eq!(read(&of("casemate-7.tenants"), "cpu.weight"), "100");
    assert_eq!(read(&of("casemate-7.tenants"), "memory.max"), "1048576000");

    let vault = cgroups.make(1, Some(Program::Vault), 0, 0).unwrap();
    let vault = vault.unwrap().group.memory;
    assert_eq!(vault.parent(), Some(&*of("casemate-7.programs")));
    assert!(!vault.join("memory.max").exists(), "the machine's");

    let mut worker = cgroups
        .make(2, Some(Program::Worker), 320, 16)
        .unwrap()
        .unwrap();
    let spare = worker.group.memory.clone();
    assert_eq!(spare.parent(), Some(&*of("casemate-7.tenants/spares")));
    assert_eq!(read(&spare, "memory.max"), "335544320");
    cgroups
        .assign(&mut worker, 4711, number(3), (128, 512))
        .unwrap();
    let tenant = of("casemate-7.tenants/tenant-3");
    assert_eq!(read(&tenant, "memory.max"), "536870912");
    assert_eq!(read(&tenant, "cpu.weight"), "100");
    let leaf = worker.group.memory.clone();
    assert_eq!(leaf.parent(), Some(&*tenant));
    assert_eq!(read(&leaf, "memory.max"), "134217728");
    assert_eq!(read(&leaf, "pids.max"), "16");
    assert_eq!(read(&leaf, "cgroup.procs"), "4711");

    let other = cgroups.assign(&mut worker, 4711, number(4), (64, 512));
    assert!(matches!(other, Err(AssignError::OfAnother(of)) if of == number(3)));
    cgroups
        .assign(&mut worker, 4711, number(3), (64, 256))
        .unwrap();
    assert_eq!(read(&leaf, "memory.max"), "67108864");
    assert_eq!(read(&tenant, "memory.max"), "268435456");
}

#[test]
fn a_tenant_is_forgotten_with_its_last_worker() {
    let mount = version_2_tree("cpu memory pids\n");
    let own = find(mount.path(), "0::/\n").unwrap();
    let mut cgroups = Cgroups(Some(Tree::make(&own, 7, None).unwrap()));
    let mut workers: Vec<Cgroup> = [1, 2]
        .map(|id| cgroups.make(id, Some(Program::Worker), 64, 8).unwrap())
        .into_iter()
        .flatten()
        .collect();
    for worker in &mut workers {
        cgroups.assign(worker, 1, number(9), (64, 512)).unwrap();
    }
    for (left, worker) in [(true, workers.pop()), (false, workers.pop())] {
        cgroups.remove(worker.unwrap());
        let tree = cgroups.0.as_ref().unwrap();
        assert_eq!(tree.by_tenant.contains_key(&number(9)), left);
    }
}

#[test]
fn leftovers_of_a_dead_launch_are_removed_with_everything_below() {
    let mount = version_2_tree("memory pids\n");
    let own = find(mount.path(), "0::/\n").unwrap();
    // No process has an id above the kernel's limit.
    let dead = 1 << 23;
    let left = format!("casemate-{dead}.tenants/tenant-1/casemate-{dead}-5");
    let other = std::os::unix::process::parent_id();
    let alive = format!("casemate-{other}.tenants/spares");
    // A group of this process, from before it executed itself again.
    let before = format!("casemate-{}.programs", std::process::id());
    for path in [&left, &alive, &before, &format!("casemate-{dead}-1")] {
        fs::create_dir_all(mount.path().join(path)).unwrap();
    }
    sweep(&own);
    let names = fs::read_dir(mount.path()).unwrap().flatten();
    let folders = names.filter(|entry| entry.path().is_dir());
    let mut names: Vec<_> = folders.map(|entry| entry.file_name()).collect();
    names.sort();
    let kept = format!("casemate-{other}.tenants");
    assert_eq!(names, [kept.as_str(), LAUNCH]);
}

#[test]
fn without_a_hierarchy_nothing_is_made_and_an_assignment_does_nothing() {
    let mut cgroups = Cgroups(None);
    let made = cgroups.make(1, Some(Program::Worker), 64, 8);
    assert!(made.unwrap().is_none());
    cgroups.close();
    assert_eq!(cgroups.describe(), "none");
}
