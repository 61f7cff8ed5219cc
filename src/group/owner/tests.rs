//! The owner of a vApp, by its record and by its document.

use super::*;

fn owner(manager: &str, group: &str, prefix: &str, credentials: &str) -> Owner {
    Owner::new(&Policy {
        manager: manager.into(),
        group: group.into(),
        prefix: prefix.into(),
        credentials: credentials.into(),
        ..Policy::default()
    })
}

/// The document of a vApp with one VM.
fn document(name: &str, description: Option<&str>, vm_description: &str) -> cloud::Vapp {
    cloud::Vapp {
        href: "v/1".into(),
        name: name.into(),
        description: description.map(str::to_string),
        power: cloud::Power::On,
        busy: false,
        tasks: Vec::new(),
        deleting: false,
        suspending: false,
        vms: vec!["vm/1".into()],
        vm_descriptions: vec![vm_description.into()],
        made: None,
        created: None,
        labelled: false,
        mark: cloud::Mark::Running,
    }
}

fn owns(owner: &Owner, name: &str, description: Option<&str>, labelled: bool) -> bool {
    owner.owns(&document(name, description, ""), labelled)
}

#[test]
fn a_name_is_the_prefix_and_eight_characters() {
    let owner = owner("runner-1", "ci", "ci-linux", "");
    let name = owner.name(&mut Rng::new(7));
    assert!(owner.could_name(&name), "{name}");
    for other in ["ci-linux", "ci-linux-", "ci-linux-abc1234", "ci-linux-abc12345x", "ci-linux-ABC12345", "ci-abc12345"]
    {
        assert!(!owner.could_name(other), "{other}");
    }
}

#[test]
fn ownership_needs_the_name_and_the_tag() {
    let other_manager = owner("runner-2", "ci", "ci", "").description("ci-abc12345");
    let owner = owner("runner-1", "ci", "ci", "");
    let tag = owner.description("ci-abc12345");
    let copy = owner.description("ci-zzz12345");
    let judge = |name, description| owner.judge_record(name, description);
    assert_eq!(judge("ci-abc12345", Some(&tag)), Ownership::Ours);
    assert_eq!(judge("ci-abc12345-old", Some(&tag)), Ownership::Foreign);
    assert_eq!(judge("ci-abc12345", Some(&other_manager)), Ownership::Foreign);
    assert_eq!(judge("ci-abc12345", Some(&copy)), Ownership::Unsure, "the VM may be a copy, or moved");
    assert!(!owns(&owner, "ci-abc12345", Some(&copy), true));
    assert_eq!(judge("ci-abc12345", Some("a template's text")), Ownership::Unsure);
    assert_eq!(judge("ci-abc12345", None), Ownership::Unsure);
    assert!(owns(&owner, "ci-abc12345", Some(&tag), false));
    assert!(owns(&owner, "ci-abc12345", None, true), "the Go plugin's");
    assert!(!owns(&owner, "ci-abc12345", None, false));
    assert!(!owns(&owner, "ci-abc12345", Some(&other_manager), true));
    assert!(!owns(&owner, "renamed", Some(&tag), true));
    // A person has changed the vApp's description: the tag of its VM remains.
    let edited = document("ci-abc12345", Some("edited"), &other_manager);
    assert!(!owner.owns(&edited, true));
}

#[test]
fn other_credentials_lock_out_and_are_no_part_of_ownership() {
    let of = |credentials| owner("runner-1", "ci", "ci", credentials);
    let name = "ci-abc12345";
    for made in ["", "0123abcd", "ffff0000"] {
        let description = of(made).description(name);
        for now in ["", "0123abcd", "ffff0000"] {
            let owner = of(now);
            assert_eq!(owner.judge_record(name, Some(&description)), Ownership::Ours, "{description}");
            assert!(owns(&owner, name, Some(&description), false), "{description}");
            assert_eq!(owner.locks_out(name, Some(&description)), made != now, "{description}");
        }
    }
    let description = of("0123abcd").description(name);
    for other in [format!("{description} x"), format!("{description}{description}"), description.replace("cred", "x")] {
        // A person may have added a note to the VM's text.
        assert_eq!(of("").judge_record(name, Some(&other)), Ownership::Unsure, "{other}");
        assert!(!owns(&of(""), name, Some(&other), true), "{other}");
    }
    assert!(of("0123abcd").locks_out(name, None), "the Go plugin's");
    assert!(!of("").locks_out(name, None), "the Go plugin's");
}

#[test]
fn descriptions_and_names_are_spelt_so() {
    let plain = owner("runner-1", "ci", "vm", "");
    let tag = "fleeting-plugin-vcd/1 manager=runner-1 group=ci id=vm-abc12345";
    assert_eq!(plain.description("vm-abc12345"), tag);
    let derived = owner("runner-1", "ci", "vm", "0123abcd");
    assert_eq!(derived.description("vm-abc12345"), format!("{tag} credentials=0123abcd"));
    let mut rng = Rng::new(7);
    let names: std::collections::BTreeSet<Name> = (0..20).map(|_| plain.name(&mut rng)).collect();
    assert_eq!(names.len(), 20, "{names:?}");
}

#[test]
fn a_record_without_a_description_needs_a_lookup() {
    let owner = owner("runner-1", "ci", "ci", "");
    let tag = owner.description("ci-abc12345");
    for labelled in [false, true] {
        for description in [None, Some(""), Some("  ")] {
            assert_eq!(owner.judge_record("ci-abc12345", description), Ownership::Unsure);
            assert_eq!(owns(&owner, "ci-abc12345", description, labelled), labelled);
            assert_eq!(owner.judge_record("other", description), Ownership::Foreign);
            assert!(!owns(&owner, "other", description, labelled));
        }
        let padded = format!(" {tag}\n");
        assert_eq!(owner.judge_record("ci-abc12345", Some(&padded)), Ownership::Ours);
        assert!(owns(&owner, "ci-abc12345", Some(&padded), labelled));
        assert_eq!(owns(&owner, "ci-abc12345", Some("a template's text"), labelled), labelled);
    }
}
