package sdk

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmware/go-vcloud-director/v2/govcd"
	"github.com/vmware/go-vcloud-director/v2/types/v56"
)

const (
	// The SDK reads a task at once and then every three seconds. At this speed, most tasks have ended at the first read.
	scale = 100_000
	// Lifetime of sessions and leases in seconds of the simulator's time: longer than the test at that speed.
	longLife = 1_000_000_000
	patience = 30 * time.Second
	org      = "ci-org"
	label    = "vcd-instance-group"
)

// simulator is a running simulated VCD.
type simulator struct {
	http, https, control string
	roots                *x509.CertPool
}

// built returns the path of a release binary, or of the one that a variable names.
func built(t *testing.T, variable, name string) string {
	t.Helper()
	binary := os.Getenv(variable)
	if binary == "" {
		binary = filepath.Join("..", "..", "target", "release", name)
	}
	if _, err := os.Stat(binary); err != nil {
		t.Fatalf("%v: build it with cargo build --release --workspace, or set %s", err, variable)
	}
	return binary
}

func startSimulator(t *testing.T) simulator {
	t.Helper()
	binary := built(t, "SIM_BIN", "vcd-sim")
	certificate := filepath.Join(t.TempDir(), "ca.pem")
	command := exec.Command(binary, "--listen", "127.0.0.1:0", "--https-listen", "127.0.0.1:0", "--control", "127.0.0.1:0",
		"--ca-out", certificate, "--scale", strconv.Itoa(scale), "--guest-port", freePort(t))
	command.Stderr = os.Stderr
	stdout, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		command.Process.Kill()
		command.Wait()
	})
	// If it prints nothing, this ends its output, and so the wait below.
	late := time.AfterFunc(patience, func() { command.Process.Kill() })
	defer late.Stop()
	sim := simulator{roots: x509.NewCertPool()}
	lines := bufio.NewScanner(stdout)
	for sim.control == "" && lines.Scan() {
		switch word, address, _ := strings.Cut(lines.Text(), " "); word {
		case "vcd":
			sim.http = address
		case "https":
			sim.https = address
		case "control":
			sim.control = address
		}
	}
	pem, err := os.ReadFile(certificate)
	if err != nil || sim.http == "" || sim.https == "" || !sim.roots.AppendCertsFromPEM(pem) {
		t.Fatalf("the simulator did not print its addresses: %+v, %v, %v", sim, lines.Err(), err)
	}
	sim.admin(t, map[string]any{"action": "set_setting", "name": "bearer_s", "value": longLife})
	return sim
}

func freePort(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return strconv.Itoa(listener.Addr().(*net.TCPAddr).Port)
}

// admin changes the simulated VCD through the control port, and returns the answer.
func (s simulator) admin(t *testing.T, action map[string]any) []byte {
	t.Helper()
	body, err := json.Marshal(action)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.Post(s.control+"/admin", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	said, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%v: %s, %v", action, response.Status, err)
	}
	return said
}

// client returns the SDK before its login.
func (s simulator) client(t *testing.T, address string) *govcd.VCDClient {
	t.Helper()
	place, err := url.ParseRequestURI(address + "/api")
	if err != nil {
		t.Fatal(err)
	}
	client := govcd.NewVCDClient(*place, false)
	client.Client.Http.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: s.roots}
	return client
}

type login struct {
	name string
	do   func(*govcd.VCDClient) error
}

var logins = []login{
	{"password", func(client *govcd.VCDClient) error { return client.Authenticate("ci", "ci-password", org) }},
	{"token", func(client *govcd.VCDClient) error {
		_, err := client.SetApiToken(org, "sim-api-token")
		return err
	}},
}

// TestLife plays all actions of a client on a VM, from login to delete, with both logins over HTTP and HTTPS.
func TestLife(t *testing.T) {
	sim := startSimulator(t)
	for _, login := range logins {
		for scheme, address := range map[string]string{"http": sim.http, "https": sim.https} {
			name := login.name + "-" + scheme
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				client := sim.client(t, address)
				if err := login.do(client); err != nil {
					t.Fatal(err)
				}
				found := find(t, client)
				compose(t, client, found, "composed-"+name)
				live(t, client, found, "sdk-"+name)
				logOut(t, client)
			})
		}
	}
}

func TestRefusedLogins(t *testing.T) {
	sim := startSimulator(t)
	if err := sim.client(t, sim.http).Authenticate("ci", "wrong", org); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("a wrong password: %v", err)
	}
	if _, err := sim.client(t, sim.http).SetApiToken(org, "wrong"); err == nil {
		t.Error("a wrong token was accepted")
	}
	sim.admin(t, map[string]any{"action": "revoke_token", "token": "sim-api-token"})
	if _, err := sim.client(t, sim.http).SetApiToken(org, "sim-api-token"); err == nil {
		t.Error("a revoked token was accepted")
	}
	strange := sim.client(t, sim.https)
	strange.Client.Http.Transport.(*http.Transport).TLSClientConfig = &tls.Config{}
	if err := strange.Authenticate("ci", "ci-password", org); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an unknown certificate: %v", err)
	}
}

// TestServiceAccount lets the SDK and the plugin log in in turn with one service account's token, which they share in
// a file.
func TestServiceAccount(t *testing.T) {
	sim := startSimulator(t)
	plugin := built(t, "PLUGIN_BIN", "fleeting-plugin-vcd")
	var made struct{ Token string }
	if err := json.Unmarshal(sim.admin(t, map[string]any{"action": "service_token"}), &made); err != nil || made.Token == "" {
		t.Fatalf("no token: %v", err)
	}
	folder := t.TempDir()
	file := filepath.Join(folder, "token.json")
	if err := govcd.SaveServiceAccountToFile(file, "test", &types.ApiTokenRefresh{RefreshToken: made.Token}); err != nil {
		t.Fatal(err)
	}
	example, err := os.ReadFile(filepath.Join("..", "..", "examples", "simulator.toml"))
	if err != nil {
		t.Fatal(err)
	}
	changes := strings.NewReplacer("http://127.0.0.1:8080", sim.http, `token = "sim-api-token"`, fmt.Sprintf("token_file = %q", file))
	config := filepath.Join(folder, "config.toml")
	if err := os.WriteFile(config, []byte(changes.Replace(string(example))), 0o600); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for turn := range 3 {
		if err := sim.client(t, sim.http).SetServiceAccountApiToken(org, file); err != nil {
			t.Fatalf("turn %d: the SDK: %v", turn, err)
		}
		said, err := exec.Command(plugin, "check", "--config", config).CombinedOutput()
		if err != nil || !strings.Contains(string(said), "a service account's") {
			t.Fatalf("turn %d: the plugin: %v\n%s", turn, err, said)
		}
		token, err := govcd.GetTokenFromFile(file)
		if err != nil || seen[token.RefreshToken] {
			t.Fatalf("turn %d: the file has no new token: %v", turn, err)
		}
		seen[token.RefreshToken] = true
	}
	if _, err := sim.client(t, sim.http).SetApiToken(org, made.Token); err == nil {
		t.Error("a replaced token was accepted")
	}
}

// places are the objects for a new VM, found with the SDK's own functions.
type places struct {
	org      *govcd.Org
	vdc      *govcd.Vdc
	template *govcd.VAppTemplate
	network  *govcd.OrgVDCNetwork
	profile  types.Reference
}

func find(t *testing.T, client *govcd.VCDClient) places {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var found places
	var err error
	found.org, err = client.GetOrgByName(org)
	must(err)
	found.vdc, err = found.org.GetVDCByName("ci-vdc", false)
	must(err)
	catalog, err := found.org.GetCatalogByName("ci-catalog", false)
	must(err)
	found.template, err = catalog.GetVAppTemplateByName("ubuntu-22.04")
	must(err)
	found.network, err = found.vdc.GetOrgVdcNetworkByName("ci-net", false)
	must(err)
	found.profile, err = found.vdc.FindStorageProfileReference("ssd")
	must(err)

	// The older way to find a template: its item in the catalog.
	item, err := catalog.GetCatalogItemByName("ubuntu-22.04", false)
	must(err)
	byItem, err := item.GetVAppTemplate()
	must(err)
	if byItem.VAppTemplate.HREF != found.template.VAppTemplate.HREF {
		t.Errorf("two templates: %s and %s", byItem.VAppTemplate.HREF, found.template.VAppTemplate.HREF)
	}
	children := found.template.VAppTemplate.Children
	if children == nil || len(children.VM) != 1 {
		t.Fatalf("the template's VM is not shown: %+v", children)
	}
	policies, err := client.GetAllAssignedVdcComputePoliciesV2(found.vdc.Vdc.ID, url.Values{"filter": {"name==small"}})
	must(err)
	if len(policies) != 1 || policies[0].VdcComputePolicyV2.CPUCount == nil || *policies[0].VdcComputePolicyV2.CPUCount != 2 {
		t.Errorf("sizing policies: %+v", policies)
	}
	if _, err := client.GetOrgByName("no-such-org"); !govcd.ContainsNotFound(err) {
		t.Errorf("an unknown org: %v", err)
	}
	if _, err := catalog.GetVAppTemplateByName("no-such-template"); !govcd.ContainsNotFound(err) {
		t.Errorf("an unknown template: %v", err)
	}
	if _, err := found.vdc.GetOrgVdcNetworkByName("no-such-network", false); !govcd.ContainsNotFound(err) {
		t.Errorf("an unknown network: %v", err)
	}
	return found
}

// compose creates a vApp with its network and its VM in one request, as the SDK writes it.
func compose(t *testing.T, client *govcd.VCDClient, found places, name string) {
	template := found.template.VAppTemplate.Children.VM[0]
	var made types.VApp
	_, err := client.Client.ExecuteRequest(found.vdc.Vdc.HREF+"/action/composeVApp", http.MethodPost,
		types.MimeComposeVappParams, "error composing a vApp: %s", &types.ComposeVAppParams{
			Ovf: types.XMLNamespaceOVF, Xsi: types.XMLNamespaceXSI, Xmlns: types.XMLNamespaceVCloud, Name: name,
			InstantiationParams: &types.InstantiationParams{NetworkConfigSection: &types.NetworkConfigSection{
				Info: "networks",
				NetworkConfig: []types.VAppNetworkConfiguration{{
					NetworkName: "ci-net",
					Configuration: &types.NetworkConfiguration{
						FenceMode:     types.FenceModeBridged,
						ParentNetwork: &types.Reference{HREF: found.network.OrgVDCNetwork.HREF},
					},
				}},
			}},
			SourcedItem: &types.SourcedCompositionItemParam{
				Source: &types.Reference{HREF: template.HREF, Name: template.Name},
				InstantiationParams: &types.InstantiationParams{NetworkConnectionSection: &types.NetworkConnectionSection{
					Info: "NICs",
					NetworkConnection: []*types.NetworkConnection{{
						Network: "ci-net", IsConnected: true, IPAddressAllocationMode: types.IPAllocationModeDHCP,
					}},
				}},
				StorageProfile: &found.profile,
			},
			AllEULAsAccepted: true,
		}, &made)
	if err != nil {
		t.Fatal(err)
	}
	if made.Tasks == nil || len(made.Tasks.Task) != 1 {
		t.Fatalf("no task composes it: %+v", made)
	}
	task := govcd.NewTask(&client.Client)
	task.Task = made.Tasks.Task[0]
	if err := task.WaitTaskCompletion(); err != nil {
		t.Fatal(err)
	}
	vapp, err := found.vdc.GetVAppByName(name, true)
	if err != nil {
		t.Fatal(err)
	}
	vms := vapp.VApp.Children
	if vms == nil || len(vms.VM) != 1 || vms.VM[0].NetworkConnectionSection.NetworkConnection[0].Network != "ci-net" {
		t.Errorf("composed: %+v", vms)
	}
	gone, err := vapp.Delete()
	if err != nil {
		t.Fatal(err)
	}
	if err := gone.WaitTaskCompletion(); err != nil {
		t.Error(err)
	}
}

// live creates a VM, changes all of it, powers it on, queries it and deletes it.
func live(t *testing.T, client *govcd.VCDClient, found places, name string) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	done := func(task govcd.Task, err error) {
		t.Helper()
		must(err)
		must(task.WaitTaskCompletion())
	}

	// Compose.
	vapp, err := found.vdc.CreateRawVApp(name, "made by the SDK")
	must(err)
	if _, err := found.vdc.CreateRawVApp(name, ""); err == nil || !strings.Contains(err.Error(), "already exists") {
		t.Errorf("the same name again: %v", err)
	}
	_, err = vapp.AddOrgNetwork(&govcd.VappNetworkSettings{}, found.network.OrgVDCNetwork, false)
	must(err)
	nic := &types.NetworkConnectionSection{NetworkConnection: []*types.NetworkConnection{{
		Network: "ci-net", IsConnected: true, IPAddressAllocationMode: types.IPAllocationModePool,
		NetworkAdapterType: "VMXNET3",
	}}}
	done(vapp.AddNewVMWithStorageProfile(name, *found.template, nic, &found.profile, true))
	vm, err := vapp.GetVMByName(name, true)
	must(err)

	// Reconfigure.
	spec := *vm.VM.VmSpecSection
	cpus, cores, memory := 4, 2, int64(8192)
	spec.NumCpus, spec.NumCoresPerSocket = &cpus, &cores
	spec.MemoryResourceMb = &types.MemoryResourceMb{Configured: memory}
	disks := *spec.DiskSection
	disks.DiskSettings[0].SizeMb = 40 * 1024
	spec.DiskSection = &disks
	vm, err = vm.UpdateVmSpecSection(&spec, "changed by the SDK")
	must(err)
	has := vm.VM.VmSpecSection
	if *has.NumCpus != cpus || *has.NumCoresPerSocket != cores || has.MemoryResourceMb.Configured != memory {
		t.Errorf("the hardware: %d CPUs, %d cores, %d MB", *has.NumCpus, *has.NumCoresPerSocket, has.MemoryResourceMb.Configured)
	}
	if has.DiskSection.DiskSettings[0].SizeMb != 40*1024 || vm.VM.Description != "changed by the SDK" {
		t.Errorf("the disk: %d MB; %q", has.DiskSection.DiskSettings[0].SizeMb, vm.VM.Description)
	}
	yes := true
	guest := *vm.VM.GuestCustomizationSection
	guest.Enabled, guest.ComputerName, guest.CustomizationScript = &yes, "sdk-guest", "#!/bin/sh\necho '<&>'\n"
	changed, err := vm.SetGuestCustomizationSection(&guest)
	must(err)
	if changed.ComputerName != "sdk-guest" || changed.CustomizationScript != guest.CustomizationScript {
		t.Errorf("the guest: %+v", changed)
	}
	_, err = vm.SetProductSectionList(&types.ProductSectionList{ProductSection: &types.ProductSection{
		Info:     "Custom properties",
		Property: []*types.Property{{Key: "user-data", Type: "string", UserConfigurable: true, Value: &types.Value{Value: "abc"}}},
	}})
	must(err)
	properties, err := vm.GetProductSectionList()
	must(err)
	if properties.ProductSection == nil || len(properties.ProductSection.Property) != 1 ||
		properties.ProductSection.Property[0].Value.Value != "abc" {
		t.Errorf("the properties: %+v", properties)
	}
	must(vapp.RenewLease(longLife, longLife))
	lease, err := vapp.GetLease()
	must(err)
	if lease.DeploymentLeaseInSeconds != longLife || lease.StorageLeaseInSeconds != longLife {
		t.Errorf("the lease: %+v", lease)
	}

	// Tag.
	must(vapp.AddMetadataEntryWithVisibility(label, "ci & co", types.MetadataStringValue, types.MetadataReadWriteVisibility, false))
	metadata, err := vapp.GetMetadata()
	must(err)
	if len(metadata.MetadataEntry) != 1 || metadata.MetadataEntry[0].Key != label ||
		metadata.MetadataEntry[0].TypedValue.Value != "ci & co" {
		t.Errorf("the metadata: %+v", metadata.MetadataEntry)
	}

	// Power.
	done(vapp.PowerOn())
	status, err := vapp.GetStatus()
	must(err)
	if status != "POWERED_ON" {
		t.Errorf("powered on, it is %s", status)
	}
	must(vm.BlockWhileGuestCustomizationStatus(types.GuestCustStatusPending, int(patience.Seconds())))
	must(vm.Refresh())
	address := vm.VM.NetworkConnectionSection.NetworkConnection[0].IPAddress
	if !strings.HasPrefix(address, "127.0.1") {
		t.Errorf("the address is %q", address)
	}
	if task, err := vapp.Delete(); err == nil || !strings.Contains(err.Error(), "Stop the vApp") {
		t.Errorf("a delete of a running vApp: %+v, %v", task.Task, err)
	}
	done(vapp.Suspend())
	must(vapp.DiscardSuspendedState())
	done(vapp.PowerOn())
	done(vm.PowerOff())
	done(vm.PowerOn())

	// Query.
	record, err := found.vdc.QueryVM(name, name)
	must(err)
	if record.VM.Status != "POWERED_ON" || record.VM.IpAddress != address || record.VM.Cpus != cpus ||
		record.VM.ContainerName != name || record.VM.StorageProfileName != "ssd" {
		t.Errorf("the VM's record: %+v", record.VM)
	}
	listed := 0
	vms, err := found.vdc.QueryVmList(types.VmQueryFilterOnlyDeployed)
	must(err)
	for _, vm := range vms {
		if vm.Name == name {
			listed++
		}
	}
	if listed != 1 {
		t.Errorf("it is in the list of VMs %d times", listed)
	}
	results, err := client.Client.QueryWithNotEncodedParams(nil, map[string]string{
		"type": "vApp", "filter": "name==" + name + ";metadata:" + label + "==STRING:" + url.QueryEscape("ci & co"),
	})
	must(err)
	if len(results.Results.VAppRecord) != 1 || results.Results.VAppRecord[0].HREF != vapp.VApp.HREF {
		t.Errorf("by its metadata: %+v", results.Results.VAppRecord)
	}
	tasks, err := client.Client.QueryTaskList(map[string]string{"objectName": name})
	must(err)
	if len(tasks) < 5 {
		t.Errorf("only %d tasks are listed", len(tasks))
	}

	// Delete.
	done(vapp.Undeploy())
	done(vapp.Delete())
	if _, err := found.vdc.GetVAppByName(name, true); !errors.Is(err, govcd.ErrorEntityNotFound) {
		t.Errorf("after its delete: %v", err)
	}
}

// logOut ends the session. VCD rejects its bearer afterwards.
func logOut(t *testing.T, client *govcd.VCDClient) {
	t.Helper()
	session := client.Client.VCDHREF.String() + "/session"
	err := client.Client.ExecuteRequestWithoutResponse(session, http.MethodDelete, "", "error logging out: %s", nil)
	if err != nil {
		t.Error(err)
	}
	if _, err := client.GetOrgList(); err == nil {
		t.Error("the ended session still works")
	}
}
