use super::*;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

const ED25519: &str = include_str!("testdata/ed25519");
const ENCRYPTED: &str = include_str!("testdata/encrypted");

fn settings() -> Settings {
    Settings {
        os: None,
        arch: None,
        protocol: Protocol::Ssh,
        port: 22,
        username: None,
        password: None,
        key: None,
        seed: None,
        custom_script: None,
        login_script: true,
        keepalive: 1,
        timeout: 2,
    }
}

fn key(public: &str) -> Option<Key> {
    Some(Key { private: Secret::new("private"), public: public.into() })
}

// Keys

/// Every type and format that can be used, and the public half that ssh-keygen wrote.
const KEYS: [(&str, &str, &str); 15] = {
    macro_rules! key {
        ($file:literal, $public:literal) => {
            ($file, include_str!(concat!("testdata/", $file)), include_str!(concat!("testdata/", $public)))
        };
    }
    [
        key!("ed25519", "ed25519.pub"),
        key!("ed25519.pkcs8", "ed25519.pub"),
        key!("rsa", "rsa.pub"),
        key!("rsa.pkcs1", "rsa.pub"),
        key!("rsa.pkcs8", "rsa.pub"),
        key!("p256", "p256.pub"),
        // Its number is short of a byte.
        key!("p256.short", "p256.short.pub"),
        key!("p256.sec1", "p256.pub"),
        key!("p256.pkcs8", "p256.pub"),
        key!("p384", "p384.pub"),
        key!("p384.sec1", "p384.pub"),
        key!("p384.pkcs8", "p384.pub"),
        key!("p521", "p521.pub"),
        key!("p521.sec1", "p521.pub"),
        key!("p521.pkcs8", "p521.pub"),
    ]
};

#[test]
fn public_halves_are_those_of_ssh_keygen() {
    for (file, pem, public) in KEYS {
        let expected = public.split(' ').take(2).collect::<Vec<_>>().join(" ");
        let key = Key::parse(pem.as_bytes()).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert_eq!(key.public, expected.trim_end(), "{file}");
        assert_eq!(key.private.reveal(), pem, "{file}");
        // What stands around it would stop Go, which reads the first block only.
        let parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
        let surrounded = Key::parse(format!("{parameters}{pem}\n# the end\n").as_bytes()).unwrap();
        assert_eq!((surrounded.public, surrounded.private.reveal()), (key.public, pem), "{file}");
    }
}

#[test]
fn a_key_of_a_seed_is_the_one_of_the_standard() {
    // RFC 8032, 7.1, test 1.
    let seed = [
        0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44, 0x49,
        0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
    ];
    let key = Key::from_seed(&seed).unwrap();
    assert_eq!(key.public, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea");
    let read = Key::parse(key.private.reveal().as_bytes()).unwrap();
    assert_eq!((&read.public, &read.private), (&key.public, &key.private));
    // OpenSSH's own client, which reads fewer formats than Go, sees the same key.
    if !Path::new("/usr/bin/ssh-keygen").exists() {
        return println!("left out in part: there is no ssh-keygen");
    }
    let file = std::env::temp_dir().join(format!("vcd-key-{}", std::process::id()));
    fs::write(&file, key.private.reveal()).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let output = Command::new("ssh-keygen").args(["-y", "-f"]).arg(&file).output().unwrap();
    fs::remove_file(&file).unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), key.public, "{output:?}");
}

#[test]
fn pem_of_other_tools_is_read() {
    let expected = Key::parse(ED25519.as_bytes()).unwrap().public;
    let body: String = ED25519.lines().filter(|line| !line.starts_with('-')).collect();
    let narrow: Vec<&str> = body.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let narrow = narrow.join("\n");
    let narrow = format!("-----BEGIN OPENSSH PRIVATE KEY-----\n{narrow}\n-----END OPENSSH PRIVATE KEY-----");
    let dos = ED25519.replace('\n', "\r\n");
    let preceded = format!("# my key\n\n{ED25519}\n\n");
    for pem in [narrow, dos, preceded] {
        assert_eq!(Key::parse(pem.as_bytes()).unwrap().public, expected, "{pem}");
    }
}

#[test]
fn keys_that_cannot_be_used_are_refused_with_the_reason() {
    let begin = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    let cut: String = ED25519.lines().take(3).map(|line| format!("{line}\n")).collect();
    let damaged = ED25519.replacen("b3BlbnNz", "b3BlbnNx", 1);
    for (pem, expected) in [
        (ENCRYPTED.to_owned(), "encrypted"),
        (begin("RSA PRIVATE KEY"), "cannot be read"),
        (begin("PRIVATE KEY"), "cannot be read"),
        (begin("EC PRIVATE KEY"), "cannot be read"),
        (include_str!("testdata/k256.sec1").to_owned(), "not P-256"),
        (include_str!("testdata/p256.explicit").to_owned(), "cannot be read"),
        (include_str!("testdata/p256.nopublic").to_owned(), "openssl ec"),
        (include_str!("testdata/p256.encrypted8").to_owned(), "encrypted"),
        (include_str!("testdata/dsa").to_owned(), "DSA"),
        (include_str!("testdata/rsa768").to_owned(), "fewer than 1024 bits"),
        // Its private half is another's.
        (include_str!("testdata/ed25519.swapped").to_owned(), "do not match"),
        // The key's label is another's.
        (include_str!("testdata/rsa.pkcs1").replace("RSA PRIVATE", "PRIVATE"), "cannot be read"),
        (include_str!("testdata/rsa.pkcs8").replace("PRIVATE KEY", "RSA PRIVATE KEY"), "cannot be read"),
        (begin("ENCRYPTED PRIVATE KEY"), "encrypted"),
        (begin("RSA PRIVATE KEY").replace("AAAA", "Proc-Type: 4,ENCRYPTED\n\nAAAA"), "encrypted"),
        (begin("PUBLIC KEY"), "public key"),
        (begin("CERTIFICATE"), "no private key"),
        (include_str!("testdata/ed25519.pub").to_owned(), "public key"),
        ("PuTTY-User-Key-File-3: ssh-ed25519".to_owned(), "PuTTY"),
        ("hello".to_owned(), "not a private key"),
        (String::new(), "not a private key"),
        (cut, "END line"),
        (damaged, "cannot be read"),
        (begin("OPENSSH PRIVATE KEY"), "cannot be read"),
        ("x".repeat(key::MAX_KEY + 1), "bytes"),
    ] {
        let error = Key::parse(pem.as_bytes()).unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
        let quoted = pem.lines().any(|line| line.len() > 5 && error.contains(line));
        assert!(!quoted && error.lines().count() == 1, "{error}");
    }
    for (file, pem, _) in KEYS {
        // Any one line less.
        let lines: Vec<&str> = pem.lines().collect();
        for without in 1..lines.len() - 1 {
            let left: Vec<&str> = lines.iter().enumerate().filter(|(at, _)| *at != without).map(|(_, l)| *l).collect();
            assert!(Key::parse(left.join("\n").as_bytes()).is_err(), "{file} without line {without}");
        }
    }
    assert!(Key::parse(&[0xff, 0xfe]).unwrap_err().contains("not text"));
    let shown = format!("{:?}", Key::parse(ED25519.as_bytes()).unwrap());
    assert!(!shown.contains("OPENSSH"), "{shown}");
}

// Names and logins

#[test]
fn computer_names_fit_the_guest() {
    let long = format!("{}-abcd1234", "x".repeat(80));
    let long_linux = format!("{}-abcd1234", "x".repeat(54));
    for (name, windows, expected) in [
        ("ci-linux-abcd1234", false, "ci-linux-abcd1234"),
        ("ci-windows-abcd1234", true, "ci-win-abcd1234"),
        ("CI_Linux.x-abcd1234", false, "CI-Linux-x-abcd1234"),
        ("runner-medium-abcd1234", true, "runner-abcd1234"),
        ("abcde-fgh-abcd1234", true, "abcde-abcd1234"),
        ("abc-abcd1234", true, "abc-abcd1234"),
        ("--a_", false, "a"),
        ("1234", false, "vm1234"),
        ("123456789012345", true, "vm1234567890123"),
        ("___", false, "vm"),
        ("grüße-abcd1234", false, "gr--e-abcd1234"),
        (&long, true, "xxxxxx-abcd1234"),
        (&long, false, &long_linux),
    ] {
        assert_eq!(computer_name(name, windows), expected, "{name}");
    }
}

#[test]
fn login_says_what_was_set_and_else_the_defaults() {
    let linux = login(&settings(), "Ubuntu Linux (64-bit)", "a");
    assert_eq!((linux.os.as_str(), linux.arch.as_str(), linux.username.as_str()), ("linux", "amd64", "root"));
    assert_eq!((linux.port, linux.keepalive, linux.timeout), (22, 1, 2));
    let windows = login(&settings(), "Microsoft WINDOWS Server 2022 (64-bit)", "a");
    assert_eq!((windows.os.as_str(), windows.username.as_str()), ("windows", "Administrator"));

    let set = Settings {
        os: Some("linux".into()),
        arch: Some("arm64".into()),
        username: Some("ci".into()),
        password: Some(Secret::new("geheim")),
        key: key("ssh-ed25519 AAAA"),
        ..settings()
    };
    let login = login(&set, "Microsoft Windows", "a");
    assert_eq!((login.os.as_str(), login.arch.as_str(), login.username.as_str()), ("linux", "arm64", "ci"));
    assert_eq!(super::login(&settings(), "Debian GNU/Linux 6 (32-bit)", "a").arch, "386");
    assert_eq!(login.password.unwrap().reveal(), "geheim");
    assert_eq!(login.key.unwrap().reveal(), "private");
}

#[test]
fn a_script_is_created_only_if_it_is_needed() {
    let password = Some(Secret::new("geheim"));
    let has_script = |username: Option<&str>, guest_os: &str| {
        let username = username.map(str::to_owned);
        let guest = guest(&Settings { username, password: password.clone(), ..settings() }, guest_os, "ci-abcd1234");
        assert_eq!(guest.password, password);
        assert_eq!(guest.computer_name, "ci-abcd1234");
        guest.script.is_some()
    };
    assert!(has_script(None, "Linux"));
    assert!(has_script(Some("root"), "Linux"));
    assert!(has_script(Some("ci"), "Linux"));
    assert!(!has_script(None, "Windows"));
    assert!(!has_script(Some("administrator"), "Windows"));
    assert!(has_script(Some("ci"), "Windows"));

    let with_key = Settings { key: key("ssh-ed25519 AAAA"), ..settings() };
    assert!(guest(&with_key, "Linux", "ci-abcd1234").script.is_some());
    assert!(guest(&with_key, "Linux", "ci-abcd1234").password.is_none());
}

#[test]
fn scripts_have_a_limit() {
    let (windows, linux) = (Some("Microsoft Windows Server 2022 (64-bit)"), Some("Debian GNU/Linux 12 (64-bit)"));
    let small = Settings { key: key("ssh-ed25519 AAAA"), ..settings() };
    for guest_os in [None, linux, windows] {
        assert_eq!(check(&small, guest_os), Ok(()));
        let error = check(&Settings { key: key(&"x".repeat(MAX_SCRIPT)), ..settings() }, guest_os).unwrap_err();
        assert!(error.contains("49000"), "{error}");
    }
    // Base64 makes it too long for Windows only.
    let long = |os: Option<&str>| {
        let (os, custom_script) = (os.map(str::to_owned), Some(Secret::new("x".repeat(40_000))));
        Settings { os, custom_script, ..small.clone() }
    };
    assert!(check(&long(None), None).is_ok() && check(&long(None), linux).is_ok());
    assert!(check(&long(Some("linux")), None).is_ok() && check(&long(Some("linux")), windows).is_ok());
    assert!(check(&long(None), windows).is_err());
    assert!(check(&long(Some("windows")), None).is_err());
}

// Generated credentials

fn seeded(secret: &str) -> Settings {
    Settings { seed: Some(Seed::new(Secret::new(secret))), ..settings() }
}

#[test]
fn each_instance_has_a_key_of_its_own_that_survives() {
    let settings = seeded("a secret of the user");
    let first = login(&settings, "Linux", "ci-aaaaaaaa");
    let key = Key::parse(first.key.as_ref().unwrap().reveal().as_bytes()).unwrap();
    assert!(first.password.is_none());
    let installed = guest(&settings, "Linux", "ci-aaaaaaaa");
    assert!(installed.script.unwrap().reveal().contains(&format!("key='{}'", key.public)), "{}", key.public);
    assert!(installed.password.is_none());
    // Never to change: instances of an earlier version have theirs by it.
    assert_eq!(key.public, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIH5abaWB6NHky6fBsfVxivc04WtZCQQO97dcQXJ6Rntz");
    assert_eq!(fingerprint(&settings), "534a2742");
    let others = [login(&settings, "Linux", "ci-aaaaaaab"), login(&seeded("another"), "Linux", "ci-aaaaaaaa")];
    assert!(others.iter().all(|other| other.key != first.key));
    assert!(!format!("{settings:?} {first:?}").contains("a secret of"));
}

#[test]
fn a_windows_has_a_password_too_that_its_policy_takes() {
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..200 {
        let settings = seeded(&format!("secret {n}"));
        let login = login(&settings, "Microsoft Windows", "ci-aaaaaaaa");
        assert!(login.key.is_some());
        let password = login.password.unwrap();
        assert_eq!(password.reveal().len(), 32);
        assert!(is_complex(password.reveal(), "Administrator") && is_complex(password.reveal(), "abc def"));
        let guest = guest(&settings, "Microsoft Windows", "ci-aaaaaaaa");
        assert_eq!(guest.password, Some(password.clone()));
        assert!(guest.script.unwrap().reveal().contains("administrators_authorized_keys"));
        assert!(seen.insert(password.reveal().to_owned()));
    }
    let winrm = Settings { protocol: Protocol::Winrm, ..seeded("secret") };
    let login = login(&winrm, "Microsoft Windows", "ci-aaaaaaaa");
    assert!(login.password.is_some() && login.key.is_none());
    assert!(guest(&winrm, "Microsoft Windows", "ci-aaaaaaaa").script.is_none());
}

#[test]
fn a_password_that_windows_refuses_is_warned_of() {
    let warned = |password: &str, username: Option<&str>, guest_os: &str| {
        let (password, username) = (Some(Secret::new(password)), username.map(str::to_owned));
        warning(&Settings { password, username, ..settings() }, guest_os).is_some()
    };
    for (password, username, expected) in [
        ("Geheim123", None, false),
        ("geheim12!", None, false),
        ("Gehei12", None, true),
        ("geheim123", None, true),
        ("Administrator1", None, true),
        ("xBuild123", Some("ci-build"), true),
        ("xCiCi123", Some("ci"), false),
    ] {
        assert_eq!(warned(password, username, "Microsoft Windows Server"), expected, "{password}");
        assert!(!warned(password, username, "Debian GNU/Linux"));
    }
    assert!(warning(&Settings { protocol: Protocol::Winrm, ..settings() }, "Debian").unwrap().contains("Debian"));
}

// The Linux script, run for real in a folder of its own

struct Guest {
    root: PathBuf,
}

impl Guest {
    fn new(test: &str, passwd: &str) -> Guest {
        let root = std::env::temp_dir().join(format!("fleeting-access-{test}-{}", std::process::id()));
        _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join("etc/passwd"), passwd).unwrap();
        Guest { root }
    }

    fn customize(&self, settings: &Settings, phase: &str) -> Output {
        let script = script(settings, &credentials(settings, false, "ci-abcd1234"), false).unwrap();
        let file = self.root.join("customize.sh");
        fs::write(&file, script).unwrap();
        let checked = Command::new("sh").arg("-n").arg(&file).output().unwrap();
        assert!(checked.status.success() && checked.stderr.is_empty(), "{checked:?}");
        // SC2016 is about texts that look like commands, which is what they are here for. CI has it; elsewhere the script is checked by running it.
        if let Ok(checked) = Command::new("shellcheck").arg("--exclude=SC2016").arg(&file).output() {
            assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
        }
        // What the test puts there comes first.
        let path = format!("{}/bin:{}", self.root.display(), std::env::var("PATH").unwrap());
        Command::new("sh").arg(&file).arg(phase).env("FLEETING_ROOT", &self.root).env("PATH", path).output().unwrap()
    }

    fn customized(&self, settings: &Settings) {
        let output = self.customize(settings, "postcustomization");
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap()
    }

    fn mode(&self, path: &str) -> u32 {
        fs::metadata(self.root.join(path)).unwrap().permissions().mode() & 0o7777
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.root);
    }
}

const PASSWD: &str =
    "daemon:x:1:1::/usr/sbin:/sbin/nologin\nroot:x:0:0:root:/root:/bin/sh\nci:x:1001:1002:CI,,,:/srv/ci:/bin/sh";

#[test]
fn the_linux_script_installs_the_key_once() {
    let guest = Guest::new("once", PASSWD);
    let settings = Settings { key: key("ssh-ed25519 AAAA"), ..settings() };
    guest.customized(&settings);
    guest.customized(&settings);
    assert_eq!(guest.read("root/.ssh/authorized_keys"), "ssh-ed25519 AAAA\n");
    assert_eq!((guest.mode("root/.ssh"), guest.mode("root/.ssh/authorized_keys")), (0o700, 0o600));
    let owner = format!("chown 0:0 {0}/root/.ssh {0}/root/.ssh/authorized_keys", guest.root.display());
    assert!(guest.read("commands").lines().any(|line| line == owner), "{}", guest.read("commands"));
    assert!(!guest.read("commands").contains("useradd"));
}

#[test]
fn the_linux_script_does_nothing_before_the_customization() {
    let guest = Guest::new("before", PASSWD);
    let settings = Settings { key: key("ssh-ed25519 AAAA"), ..settings() };
    for phase in ["precustomization", ""] {
        assert!(guest.customize(&settings, phase).status.success());
        assert!(!guest.root.join("root").exists() && !guest.root.join("commands").exists());
    }
}

#[test]
fn the_linux_script_keeps_what_is_there() {
    let guest = Guest::new("keeps", PASSWD);
    fs::create_dir_all(guest.root.join("srv/ci/.ssh")).unwrap();
    fs::write(guest.root.join("srv/ci/.ssh/authorized_keys"), "ssh-rsa BBBB admin").unwrap();
    fs::set_permissions(guest.root.join("srv/ci/.ssh"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(guest.root.join("srv/ci/.ssh/authorized_keys"), fs::Permissions::from_mode(0o644)).unwrap();
    guest.customized(&Settings { username: Some("ci".into()), key: key("ssh-ed25519 AAAA"), ..settings() });
    assert_eq!(guest.read("srv/ci/.ssh/authorized_keys"), "ssh-rsa BBBB admin\nssh-ed25519 AAAA\n");
    assert_eq!((guest.mode("srv/ci/.ssh"), guest.mode("srv/ci/.ssh/authorized_keys")), (0o700, 0o600));
    assert!(guest.read("commands").contains("chown 1001:1002 "));
}

#[test]
fn the_linux_script_makes_a_home_that_sshd_and_selinux_take() {
    // The user is there, the home and the folders above it are not.
    let guest = Guest::new("home", "ci:x:1001:1002::/export/deep/ci:/bin/sh\n");
    let settings = Settings { username: Some("ci".into()), key: key("ssh-ed25519 AAAA"), ..settings() };
    let bin = guest.root.join("bin");
    fs::create_dir(&bin).unwrap();
    fs::write(bin.join("restorecon"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(bin.join("restorecon"), fs::Permissions::from_mode(0o755)).unwrap();
    guest.customized(&settings);
    assert_eq!((guest.mode("export"), guest.mode("export/deep"), guest.mode("export/deep/ci")), (0o755, 0o755, 0o700));
    let home = format!("{}/export/deep/ci", guest.root.display());
    let commands = guest.read("commands");
    assert!(commands.starts_with(&format!("chown 1001:1002 {home}\n")), "{commands}");
    assert!(commands.ends_with(&format!("restorecon -R {home}\n")), "{commands}");
    // Others may write it: StrictModes would refuse.
    fs::set_permissions(&home, fs::Permissions::from_mode(0o777)).unwrap();
    guest.customized(&settings);
    assert_eq!(guest.mode("export/deep/ci"), 0o755);
    let commands = guest.read("commands");
    assert!(commands.ends_with(&format!("restorecon -R {home}/.ssh\n")), "{commands}");
}

#[test]
fn the_linux_script_makes_the_user_and_sets_the_password() {
    let guest = Guest::new("makes", PASSWD);
    let password = Some(Secret::new("a b'c\"$(touch x)`\\ "));
    guest.customized(&Settings { username: Some("new".into()), password, key: key("ssh-rsa BBBB"), ..settings() });
    assert_eq!(guest.read("home/new/.ssh/authorized_keys"), "ssh-rsa BBBB\n");
    let commands = guest.read("commands");
    let lines: Vec<&str> = commands.lines().collect();
    assert!(lines[0].starts_with("useradd -m -s /bin/") && lines[0].ends_with(" -p * -- new"), "{commands}");
    assert_eq!(lines[1..3], ["chpasswd", "new:a b'c\"$(touch x)`\\ "]);
    assert!(commands.contains("chown new: "), "{commands}");
}

#[test]
fn the_linux_script_takes_any_text() {
    let texts = [
        "a'b",
        "$(touch pwned)",
        "`touch pwned`",
        "a\"b",
        "a\\nb",
        "*",
        "a b",
        "'; touch pwned; '",
        "ü€",
        "-e",
        "%s",
        "~root",
        "END_OF_PASSWORD",
    ];
    for (at, text) in texts.iter().enumerate() {
        let guest = Guest::new(&format!("text-{at}"), "root:x:0:0::/root:/bin/sh\n");
        let settings = Settings {
            username: Some((*text).into()),
            password: Some(Secret::new(*text)),
            key: key(text),
            ..settings()
        };
        guest.customized(&settings);
        guest.customized(&settings);
        let home = guest.root.join("home").join(text);
        assert_eq!(fs::read_to_string(home.join(".ssh/authorized_keys")).unwrap(), format!("{text}\n"));
        assert!(guest.read("commands").contains(&format!("\nchpasswd\n{text}:{text}\n")), "{}", guest.read("commands"));
        let names: Vec<_> = fs::read_dir(&guest.root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 4, "{names:?}");
        assert!(!Path::new("pwned").exists());
    }
}

#[test]
fn the_linux_script_gives_the_user_sudo_and_docker_where_they_are() {
    let guest = Guest::new("rights", PASSWD);
    let settings = Settings { username: Some("ci".into()), key: key("ssh-ed25519 AAAA"), ..settings() };
    guest.customized(&settings);
    assert!(!guest.root.join("etc/sudoers.d").exists() && !guest.read("commands").contains("docker"));

    fs::create_dir_all(guest.root.join("etc/sudoers.d")).unwrap();
    fs::write(guest.root.join("etc/group"), "root:x:0:\ndocker:x:999:\n").unwrap();
    guest.customized(&settings);
    guest.customized(&settings);
    assert_eq!(guest.read("etc/sudoers.d/99-fleeting"), "#1001 ALL=(ALL:ALL) NOPASSWD: ALL\n");
    assert_eq!(guest.mode("etc/sudoers.d/99-fleeting"), 0o440);
    assert!(guest.read("commands").contains("\nusermod -a -G docker -- ci\n"));
    if let Ok(checked) = Command::new("visudo").arg("-cf").arg(guest.root.join("etc/sudoers.d/99-fleeting")).output() {
        assert!(checked.status.success(), "{checked:?}");
    }

    let root = Guest::new("rights-root", PASSWD);
    fs::create_dir_all(root.root.join("etc/sudoers.d")).unwrap();
    root.customized(&Settings { username: None, ..settings });
    assert!(!root.root.join("etc/sudoers.d/99-fleeting").exists());
}

#[test]
fn the_linux_script_lets_sshd_ask_for_passwords() {
    let guest = Guest::new("sshd", PASSWD);
    fs::create_dir_all(guest.root.join("etc/ssh/sshd_config.d")).unwrap();
    let settings = Settings { username: Some("ci".into()), ..settings() };
    let password = Some(Secret::new("geheim"));
    guest.customized(&Settings { key: key("ssh-ed25519 AAAA"), ..settings.clone() });
    assert!(!guest.root.join("etc/ssh/sshd_config.d/00-fleeting.conf").exists());
    let with_password = Settings { password, ..settings };
    guest.customized(&with_password);
    assert_eq!(guest.read("etc/ssh/sshd_config.d/00-fleeting.conf"), "PasswordAuthentication yes\n");
    assert!(guest.read("commands").contains("\nsystemctl reload ssh\n"));

    // Root too, by its own rule, but not if a key does.
    let root = Guest::new("sshd-root", PASSWD);
    fs::create_dir_all(root.root.join("etc/ssh/sshd_config.d")).unwrap();
    let as_root = Settings { username: None, ..with_password.clone() };
    root.customized(&Settings { key: key("ssh-ed25519 AAAA"), ..as_root.clone() });
    assert!(!root.root.join("etc/ssh/sshd_config.d/00-fleeting.conf").exists());
    root.customized(&as_root);
    let expected = "PasswordAuthentication yes\nPermitRootLogin yes\n";
    assert_eq!(root.read("etc/ssh/sshd_config.d/00-fleeting.conf"), expected);
    assert!(!root.read("commands").contains("chpasswd"), "VCD sets it");

    // A main file that includes the folder stays as it is; one that does not gets the line.
    let main = "#Port 22\n  include /etc/ssh/sshd_config.d/*.conf\nPasswordAuthentication no\n";
    fs::write(guest.root.join("etc/ssh/sshd_config"), main).unwrap();
    guest.customized(&with_password);
    assert_eq!(guest.read("etc/ssh/sshd_config"), main);
    let main = "#Include /etc/ssh/sshd_config.d/*.conf\nPasswordAuthentication no\nX %s \\n\n";
    fs::write(guest.root.join("etc/ssh/sshd_config"), main).unwrap();
    fs::set_permissions(guest.root.join("etc/ssh/sshd_config"), fs::Permissions::from_mode(0o640)).unwrap();
    guest.customized(&with_password);
    guest.customized(&with_password);
    assert_eq!(guest.read("etc/ssh/sshd_config"), format!("PasswordAuthentication yes\n{main}"));
    assert_eq!(guest.mode("etc/ssh/sshd_config"), 0o640);
}

#[test]
fn the_users_script_runs_after_the_plugins() {
    let custom = |script: &str| Settings {
        key: key("ssh-ed25519 AAAA"),
        custom_script: Some(Secret::new(script)),
        ..settings()
    };
    let shown =
        "printf '%s|' \"$1\" \"$(cat \"$FLEETING_ROOT/root/.ssh/authorized_keys\")\" \"$(umask)\" END_OF_SCRIPT";
    for (at, (script, expected)) in [
        (shown.to_owned(), "postcustomization|ssh-ed25519 AAAA|0022|END_OF_SCRIPT|"),
        (format!("#!/bin/sh -u\r\n{shown}\r\n"), "postcustomization|ssh-ed25519 AAAA|0022|END_OF_SCRIPT|"),
        // As Windows' editors save it.
        ("\u{feff}#!/bin/bash\n[[ $1 == post* ]] && echo \"bash $BASH_VERSINFO\" | cut -c1-4\n".into(), "bash\n"),
        ("cat <<'END_OF_SCRIPT'\n$HOME `x` \\\nEND_OF_SCRIPT\n".into(), "$HOME `x` \\\n"),
    ]
    .into_iter()
    .enumerate()
    {
        let guest = Guest::new(&format!("custom-{at}"), PASSWD);
        let output = guest.customize(&custom(&script), "postcustomization");
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{script}");
        let early = guest.customize(&custom(&script), "precustomization");
        assert!(early.status.success() && early.stdout.is_empty(), "{early:?}");
    }
    let guest = Guest::new("custom-fails", PASSWD);
    let output = guest.customize(&custom("exit 7"), "postcustomization");
    assert_eq!(output.status.code(), Some(7), "its failure is the customization's");

    // Without anything of ours to do it is all there is.
    let only = Settings { custom_script: Some(Secret::new("echo \"$1\"")), ..settings() };
    let output = guest.customize(&only, "postcustomization");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "postcustomization\n");

    // So it is where the template or the user data lets the runner in.
    let by_template = Settings { login_script: false, password: Some(Secret::new("p")), ..custom("echo \"$1\"") };
    let output = guest.customize(&by_template, "postcustomization");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "postcustomization\n");
    let none = super::guest(&Settings { custom_script: None, ..by_template }, "Linux", "ci-abcd1234");
    assert!(none.script.is_none() && none.password.is_some(), "VCD sets root's password without one");

    assert!(check(&custom("a\u{1}b"), None).unwrap_err().contains("control characters"));
}

// The Windows script

#[test]
fn the_windows_script_is_a_batch_file_that_holds_no_raw_text() {
    let nasty = "O'Brien’s %PATH% & \" $x #POWERSHELL";
    let settings = Settings {
        username: Some(nasty.into()),
        password: Some(Secret::new(nasty)),
        key: key("ssh-rsa AAAA+/=="),
        ..settings()
    };
    let script = script(&settings, &credentials(&settings, true, "ci-abcd1234"), true).unwrap();
    assert!(script.is_ascii());
    assert_eq!(script.matches('\n').count(), script.matches("\r\n").count());
    assert!(script.starts_with("@echo off\r\n"));
    assert!(!script.contains("O'Brien") && !script.contains("%PATH%"));
    assert_eq!(script.matches("#POWERSHELL").count(), 1);
    let user: Vec<String> = nasty.encode_utf16().map(|unit| unit.to_string()).collect();
    assert!(script.contains(&format!("\r\n$user = (-join [char[]]({}))\r\n", user.join(","))));
    assert!(script.contains("\r\n$key = 'ssh-rsa AAAA+/=='\r\n"));
    for needed in [
        "if not \"%~1\"==\"postcustomization\" exit /b 0",
        "administrators_authorized_keys",
        ".ssh\\authorized_keys",
        "*S-1-5-32-544:F",
        "*S-1-5-18:F",
        "Restart-Service -Name sshd",
        "-StartupType Automatic",
    ] {
        assert!(script.contains(needed), "{needed}");
    }
    // cmd takes lines of at most 8191 characters; it reads those before `exit /b` only.
    let batch = script.split("exit /b %errorlevel%").next().unwrap();
    assert!(batch.lines().all(|line| line.len() < 8000));
}

#[test]
fn the_windows_script_makes_the_user_an_administrator_and_runs_the_users_own() {
    let password = Some(Secret::new("geheim"));
    let of = |username: Option<&str>, custom: Option<&str>| {
        let username = username.map(str::to_owned);
        let custom_script = custom.map(Secret::new);
        let settings =
            Settings { username, custom_script, password: password.clone(), key: key("ssh-rsa AAAA"), ..settings() };
        script(&settings, &credentials(&settings, true, "a"), true).unwrap()
    };
    let user = of(Some("ci"), None);
    for needed in
        ["New-LocalUser -Name $user", "Add-LocalGroupMember -SID 'S-1-5-32-544' -Member $user", "CreateProfile"]
    {
        assert!(user.contains(needed), "{needed}");
    }
    assert!(user.ends_with("\r\nexit 0\r\n") && !user.contains("$custom"));
    assert!(!of(None, None).contains("New-LocalUser"), "VCD sets the administrator's password");
    // "echo hällo" with Windows' line end, in UTF-8.
    let batch = of(None, Some("echo hällo\n"));
    assert!(batch.contains("\r\n$kind = 'cmd'\r\n$custom = 'ZWNobyBow6RsbG8NCg=='\r\n"), "{batch}");
    assert!(batch.is_ascii() && batch.ends_with("\r\nexit 0\r\n"));
    // With a byte order mark, if it has one already or not.
    for custom in ["#ps1\n\"ä\"", "\u{feff}#ps1\r\n\"ä\""] {
        let script = of(None, Some(custom));
        assert!(script.contains("\r\n$kind = 'ps1'\r\n$custom = '77u/I3BzMQ0KIsOkIg=='\r\n"), "{script}");
    }
}

// The probe

/// A server that answers its first connection with `say`, after it has read `wait_for` bytes.
fn server(wait_for: usize, say: &'static [u8], then_close: bool) -> SocketAddr {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut heard = vec![0; wait_for];
        stream.read_exact(&mut heard).unwrap();
        // The other side may have seen enough.
        _ = say.chunks(5).try_for_each(|piece| stream.write_all(piece));
        if then_close {
            _ = stream.shutdown(std::net::Shutdown::Write);
        }
        _ = stream.read_to_end(&mut Vec::new());
    });
    address
}

fn probed(address: SocketAddr, protocol: Protocol, timeout: Duration) -> Result<(), String> {
    smol::block_on(probe(address, protocol, timeout))
}

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_secs(2);

#[test]
fn the_probe_knows_an_ssh_server() {
    for say in [b"SSH-2.0-OpenSSH_9.2\r\n".as_slice(), b"hello\r\n\r\nSSH-1.99-x\n"] {
        assert_eq!(probed(server(0, say, false), Protocol::Ssh, LONG), Ok(()));
    }
    for (say, expected) in [
        (b"SSH-1.5-old\r\n".as_slice(), "protocol 2"),
        (b"", "closed"),
        (b"SSH-2.0-cut", "closed"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "closed"),
        (&[b'x'; 20_000], "not to an SSH server"),
    ] {
        let error = probed(server(0, say, true), Protocol::Ssh, LONG).unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn the_probe_knows_winrm() {
    let answer = b"HTTP/1.1 401 Unauthorized\r\n\r\n";
    assert_eq!(probed(server(20, answer, false), Protocol::Winrm, LONG), Ok(()));
    let error = probed(server(0, b"SSH-2.0-OpenSSH_9.2\r\n", false), Protocol::Winrm, LONG).unwrap_err();
    assert!(error.contains("not to WinRM"), "{error}");
}

/// Three TLS records of 16,000 bytes each with parts of one long message: more than a probe reads of it.
static ENDLESS_HELLO: [u8; 3 * 16_005] = {
    let mut all = [0; 3 * 16_005];
    let mut at = 0;
    while at < all.len() {
        (all[at], all[at + 1], all[at + 2], all[at + 3], all[at + 4]) = (0x16, 3, 3, 0x3e, 0x80);
        at += 16_005;
    }
    // A server's hello of 65,000 bytes.
    (all[5], all[7], all[8]) = (2, 0xfd, 0xe8);
    all
};

#[test]
fn the_probe_knows_winrm_over_https() {
    // An alert (handshake_failure) is TLS as well.
    let alert = b"\x15\x03\x03\x00\x02\x02\x28";
    assert_eq!(probed(server(20, alert, false), Protocol::WinrmHttps, LONG), Ok(()));
    for (say, expected) in [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".as_slice(), "not to a TLS server"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not to a TLS server"),
        (b"", "closed without a TLS answer"),
        (&[0x16, 3, 3, 0, 100, 2], "closed without a TLS answer"),
        (&[b'x'; 40_000], "not to a TLS server"),
        // The beginning of a hello that goes on and on.
        (&ENDLESS_HELLO, "not to a TLS server"),
    ] {
        let error = probed(server(100, say, true), Protocol::WinrmHttps, LONG).unwrap_err();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    // A real handshake, with a certificate that nobody knows.
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let options = vcd_sim::Options { https_listen: Some(any), ..vcd_sim::Options::default() };
    let sim = vcd_sim::Server::start(options).unwrap();
    let port = sim.https_url().unwrap().rsplit(':').next().unwrap().parse().unwrap();
    assert_eq!(probed(SocketAddr::from(([127, 0, 0, 1], port)), Protocol::WinrmHttps, LONG), Ok(()));
}

#[test]
fn the_probe_ends_in_time() {
    for protocol in [Protocol::Ssh, Protocol::Winrm] {
        let error = probed(server(0, b"SSH-", false), protocol, SHORT).unwrap_err();
        assert!(error.contains("connected, but no useful answer"), "{error}");
    }
    // Bound, but never listened on: refused at once.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert!(probed(closed, Protocol::Ssh, LONG).unwrap_err().starts_with("not connected: "));
}
