//! The scripts that VCD's guest customization runs in a new guest, and the quoting that makes them safe for any text.

use base64ct::{Base64, Encoding};

/// Maximum length of a customization script in VCD, in characters.
pub const MAX_SCRIPT: usize = 49_000;

/// Byte order mark.
pub const BOM: &str = "\u{feff}";

/// The account that can log in, and how.
pub struct Account<'a> {
    /// The user. It is created if it does not exist.
    pub user: &'a str,
    /// The user is root or Administrator.
    pub administrator: bool,
    /// The password to set; `None`: VCD sets it.
    pub password: Option<&'a str>,
    /// Line for authorized_keys.
    pub key: Option<&'a str>,
    /// Linux: sshd has to allow logins with a password.
    pub by_password: bool,
}

/// For Linux: POSIX sh. With `FLEETING_ROOT` set, it works below that folder, and writes the commands that would change
/// accounts, owners or services to `$FLEETING_ROOT/commands` instead of running them. `custom` runs at the end.
pub fn linux(account: &Account, custom: Option<&str>) -> String {
    let mut script = LINUX_START.to_string();
    if account.password.is_some() || account.key.is_some() || account.by_password {
        script += LINUX_CHANGE;
    }
    if account.password.is_some() || account.key.is_some() {
        script += &format!("user={}\n{LINUX_USER}", sh_quoted(account.user));
        script += if account.administrator { "" } else { LINUX_RIGHTS };
    }
    if let Some(password) = account.password {
        // The line that ends the text has no colon, so the text cannot contain it.
        script += &format!("change chpasswd <<'END_OF_PASSWORD'\n{}:{password}\nEND_OF_PASSWORD\n", account.user);
    }
    if account.by_password {
        let root = if account.administrator { "\nPermitRootLogin yes" } else { "" };
        script += &format!("\nallow='PasswordAuthentication yes{root}'\n{LINUX_PASSWORD}");
    }
    if let Some(key) = account.key {
        script += &format!("key={}\n{LINUX_KEY}", sh_quoted(key));
    }
    if let Some(custom) = custom {
        script += &linux_custom(custom);
    }
    script
}

/// Runs the user's script from a file with the interpreter in its first line, as the kernel would, but also from a
/// folder that is mounted `noexec`.
fn linux_custom(custom: &str) -> String {
    let text = custom.replace("\r\n", "\n");
    let line = text.lines().next().and_then(|line| line.strip_prefix("#!")).unwrap_or("/bin/sh").trim();
    let (interpreter, option) = line.split_once([' ', '\t']).unwrap_or((line, ""));
    let option = if option.trim().is_empty() { String::new() } else { sh_quoted(option.trim()) + " " };
    let mut end = String::from("END_OF_SCRIPT");
    while text.lines().any(|line| line == end) {
        end.push('_');
    }
    let line_end = if text.ends_with('\n') { "" } else { "\n" };
    format!(
        "\ncustom=$(mktemp)\ntrap 'rm -f -- \"$custom\"' EXIT\ncat >\"$custom\" <<'{end}'\n{text}{line_end}{end}\n\
         umask 022\n{} {option}\"$custom\" \"$1\"\n",
        sh_quoted(interpreter)
    )
}

const LINUX_START: &str = r#"#!/bin/sh
# Lets the CI runner log in. VCD runs this before and after the customization; only after it counts.
[ "${1-}" = postcustomization ] || exit 0
set -eu
umask 077
"#;

const LINUX_CHANGE: &str = r#"
root=${FLEETING_ROOT-}

# Runs a command that changes accounts or owners; in a folder other than / it is only recorded.
change() {
    if [ -z "$root" ]; then
        "$@"
    else
        { printf '%s\n' "$*"; [ "$1" != chpasswd ] || cat; } >>"$root/commands"
    fi
}

"#;

const LINUX_USER: &str = r#"
# Sets owner and home from the user's line in passwd, or fails.
look_up() {
    line=
    if [ -z "$root" ] && command -v getent >/dev/null 2>&1; then
        line=$(getent passwd "$user" || :)
    fi
    if [ -z "$line" ] && [ -r "$root/etc/passwd" ]; then
        while IFS= read -r each || [ -n "$each" ]; do
            case $each in "$user":*) line=$each; break ;; esac
        done <"$root/etc/passwd"
    fi
    [ -n "$line" ] || return 1
    # shellcheck disable=SC2034 # Not all of the fields are needed.
    IFS=: read -r name password uid gid about home shell <<END_OF_LINE
$line
END_OF_LINE
    owner=$uid:$gid
    [ -n "$home" ]
}

if ! look_up; then
    shell=/bin/sh
    [ ! -x /bin/bash ] || shell=/bin/bash
    # The password * matches nothing, but does not lock the account: sshd rejects locked accounts even with a key.
    if [ -n "$root" ] || command -v useradd >/dev/null 2>&1; then
        change useradd -m -s "$shell" -p '*' -- "$user"
    else
        change adduser -D -s "$shell" -- "$user"
        printf '%s:*\n' "$user" | change chpasswd -e
    fi
    if ! look_up; then
        [ -n "$root" ] || { echo "the user was not created" >&2; exit 1; }
        owner=$user: home=/home/$user
    fi
fi
"#;

/// sudo and docker, if they exist. A user's number needs no quoting in sudoers.
const LINUX_RIGHTS: &str = r#"
if [ -d "$root/etc/sudoers.d" ]; then
    printf '#%s ALL=(ALL:ALL) NOPASSWD: ALL\n' "${owner%%:*}" >"$root/etc/sudoers.d/99-fleeting"
    chmod 440 "$root/etc/sudoers.d/99-fleeting"
fi
if [ -r "$root/etc/group" ] && grep -q '^docker:' "$root/etc/group"; then
    if [ -n "$root" ] || command -v usermod >/dev/null 2>&1; then
        change usermod -a -G docker -- "$user"
    else
        change addgroup -- "$user" docker
    fi
fi
"#;

/// Cloud images do not allow logins with a password, and sshd by default not those of root. If an option is set twice,
/// sshd uses the first. Before OpenSSH 8.2 (RHEL 8) sshd includes no folder.
const LINUX_PASSWORD: &str = r#"config=$root/etc/ssh/sshd_config
if [ -d "$config.d" ] && { [ ! -e "$config" ] || grep -qi '^[[:space:]]*include[[:space:]].*sshd_config\.d/' "$config"; }; then
    echo "$allow" >"$config.d/00-fleeting.conf"
elif [ -e "$config" ] && [ "$(head -n 1 "$config")" != 'PasswordAuthentication yes' ]; then
    # Written over, not replaced: its mode and SELinux context stay.
    text=$(cat "$config")
    printf '%s\n' "$allow" "$text" >"$config"
fi
if [ -n "$root" ] || command -v systemctl >/dev/null 2>&1; then
    change systemctl reload ssh || change systemctl reload sshd || :
elif command -v rc-service >/dev/null 2>&1; then
    change rc-service sshd reload || :
fi
"#;

/// Modes for sshd's StrictModes: only the user may write the home, `.ssh` and the file.
const LINUX_KEY: &str = r#"
created=
if [ ! -d "$root$home" ]; then
    # Other users need access to the folders above it.
    (umask 022 && mkdir -p "$root$home")
    chmod 700 "$root$home"
    change chown "$owner" "$root$home"
    created=$root$home
fi
ssh=$root$home/.ssh
keys=$ssh/authorized_keys
mkdir -p "$ssh"
touch "$keys"
if ! grep -qxF -e "$key" "$keys"; then
    # The new line must not become part of a last line without a line end.
    [ -z "$(tail -c 1 "$keys")" ] || echo >>"$keys"
    printf '%s\n' "$key" >>"$keys"
fi
chmod go-w "$root$home"
chmod 700 "$ssh"
chmod 600 "$keys"
change chown "$owner" "$ssh" "$keys"
if command -v restorecon >/dev/null 2>&1; then
    change restorecon -R "${created:-$ssh}" || :
fi
"#;

/// For Windows: a batch file that starts PowerShell with its own lower part. Line ends are CRLF. `custom` runs at the
/// end.
pub fn windows(account: &Account, custom: Option<&str>) -> String {
    let mut script = String::from(WINDOWS_START);
    if account.password.is_some() || account.key.is_some() {
        script += &format!("$user = {}\n", powershell_quoted(account.user));
        let password = account.password.map_or("$null".into(), powershell_quoted);
        script += &format!("$password = {password}\n");
        script += if account.administrator { "" } else { WINDOWS_USER };
    }
    if let Some(key) = account.key {
        script += &format!("$key = {}\n{WINDOWS_KEY}", powershell_quoted(key));
    }
    if let Some(custom) = custom {
        // Windows PowerShell reads a file without a byte order mark in the system's code page.
        let (kind, mark) = if custom.starts_with("#ps1") { ("ps1", BOM) } else { ("cmd", "") };
        let text = mark.to_owned() + &custom.replace("\r\n", "\n").replace('\n', "\r\n");
        script +=
            &format!("$kind = '{kind}'\n$custom = '{}'\n{WINDOWS_CUSTOM}", Base64::encode_string(text.as_bytes()));
    }
    script += "exit 0\n";
    script.replace('\n', "\r\n")
}

/// cmd reads line by line and never sees the text after `exit`. The marker is written in two pieces where it is
/// searched.
const WINDOWS_START: &str = r#"@echo off
rem Lets the CI runner log in. VCD runs this before and after the customization; only after it counts.
if not "%~1"=="postcustomization" exit /b 0
set "FLEETING_SELF=%~f0"
powershell.exe -NoProfile -NonInteractive -ExecutionPolicy Bypass -Command "$t = [IO.File]::ReadAllText($env:FLEETING_SELF); Invoke-Expression $t.Substring($t.IndexOf('#' + 'POWERSHELL'))"
exit /b %errorlevel%
#POWERSHELL
$ErrorActionPreference = 'Stop'
trap { Write-Output $_.Exception.Message; exit 1 }
"#;

/// A user with a backslash belongs to a domain, and is not created here.
const WINDOWS_USER: &str = r#"
if ($user -notmatch '\\') {
    $known = Get-LocalUser | Where-Object { $_.Name -eq $user }
    if ($password -ne $null) {
        $secure = ConvertTo-SecureString $password -AsPlainText -Force
        if ($known) { $known | Set-LocalUser -Password $secure }
        else { New-LocalUser -Name $user -Password $secure -PasswordNeverExpires | Out-Null }
    } elseif (-not $known) {
        # Nobody knows it. An account without a password would be open at the console, and closed to the network.
        $bytes = New-Object byte[] 24
        [Security.Cryptography.RandomNumberGenerator]::Create().GetBytes($bytes)
        # At most two letters are adjacent, so a user's name, which Windows rejects in a password, cannot occur.
        $secure = ConvertTo-SecureString ('a.' + [BitConverter]::ToString($bytes)) -AsPlainText -Force
        New-LocalUser -Name $user -Password $secure -PasswordNeverExpires | Out-Null
    }
    try { Add-LocalGroupMember -SID 'S-1-5-32-544' -Member $user }
    catch [Microsoft.PowerShell.Commands.MemberExistsException] { }
}
"#;

const WINDOWS_KEY: &str = r#"
$sid = (New-Object Security.Principal.NTAccount($user)).Translate([Security.Principal.SecurityIdentifier]).Value
$home_dir = (Get-CimInstance Win32_UserProfile | Where-Object { $_.SID -eq $sid }).LocalPath
if (-not $home_dir) {
    # A plain new folder would not become the user's profile: the first login would create another one.
    try {
        $userenv = Add-Type -PassThru -Namespace Fleeting -Name Userenv -MemberDefinition @'
[DllImport("userenv.dll", CharSet = CharSet.Unicode)]
public static extern int CreateProfile(string sid, string user, System.Text.StringBuilder path, uint size);
'@
        $path = New-Object Text.StringBuilder 260
        if ($userenv::CreateProfile($sid, ($user -replace '^.*\\', ''), $path, 260) -ge 0) { $home_dir = "$path" }
    } catch { Write-Output "no profile was created: $($_.Exception.Message)" }
}

# Administrators and SYSTEM by their SIDs: their names are translated.
function Install-Key($file, $grants) {
    New-Item -ItemType Directory -Force -Path (Split-Path $file) | Out-Null
    $lines = @()
    if (Test-Path -LiteralPath $file) {
        $lines = @(Get-Content -LiteralPath $file)
        # A new file has no owner or rights that sshd rejects.
        Remove-Item -LiteralPath $file -Force
    }
    if ($lines -cnotcontains $key) { $lines += $key }
    [IO.File]::WriteAllLines($file, [string[]]$lines)
    $arguments = @($file, '/inheritance:r')
    foreach ($grant in $grants) { $arguments += @('/grant:r', $grant) }
    & icacls.exe $arguments | Out-Null
    if ($LASTEXITCODE -ne 0) { throw "icacls failed on $file" }
}
$admins = @('*S-1-5-32-544:F', '*S-1-5-18:F')
if ($home_dir) { Install-Key (Join-Path $home_dir '.ssh\authorized_keys') ($admins + "*${sid}:F") }
Install-Key (Join-Path $env:ProgramData 'ssh\administrators_authorized_keys') $admins

if (Get-Service -Name sshd -ErrorAction SilentlyContinue) {
    Set-Service -Name sshd -StartupType Automatic
    Restart-Service -Name sshd -Force
}
"#;

/// The user's script runs as a separate file.
const WINDOWS_CUSTOM: &str = r#"
$file = Join-Path ([IO.Path]::GetTempPath()) "fleeting-custom.$kind"
[IO.File]::WriteAllBytes($file, [Convert]::FromBase64String($custom))
$ErrorActionPreference = 'Continue'
if ($kind -eq 'ps1') { & powershell.exe -NoProfile -NonInteractive -ExecutionPolicy Bypass -File $file postcustomization }
else { & $env:ComSpec /d /c $file postcustomization }
$status = $LASTEXITCODE
Remove-Item -LiteralPath $file -Force -ErrorAction SilentlyContinue
if ($status -ne 0) { Write-Output "the customization script of the user ended with $status"; exit $status }
"#;

/// As one word of sh.
fn sh_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// As an expression of PowerShell. PowerShell treats several characters as quotes, so text with special characters is
/// written in numbers.
fn powershell_quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || " +/=@.-_".contains(c);
    if text.chars().all(is_plain) {
        return format!("'{text}'");
    }
    let units: Vec<String> = text.encode_utf16().map(|unit| unit.to_string()).collect();
    format!("(-join [char[]]({}))", units.join(","))
}
