package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
)

const (
	provisionerName = "lobstertrap/directories"
	madeBy          = "pv.kubernetes.io/provisioned-by"
	wantedFrom      = "volume.kubernetes.io/storage-provisioner"
	lookEvery       = 200 * time.Millisecond
)

// A provisioner makes a directory of this machine for every claim that asks for one.
//
// The upstream one for tests makes directories that only root may enter. These are
// volumes of type local: the kubelet gives them to the pod's fsGroup, as it does with
// the disks of a real cluster.
type provisioner struct {
	client kubernetes.Interface
	root   string
	node   string
}

func newProvisionerCommand() *cobra.Command {
	var kubeconfig string
	p := &provisioner{}
	command := &cobra.Command{
		Use:          "provisioner",
		SilenceUsage: true,
		RunE: func(command *cobra.Command, _ []string) error {
			config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
			if err != nil {
				return err
			}
			if p.client, err = kubernetes.NewForConfig(config); err != nil {
				return err
			}
			return p.run(command.Context())
		},
	}
	command.Flags().StringVar(&kubeconfig, "kubeconfig", "", "how to reach the cluster")
	command.Flags().StringVar(&p.root, "root", "", "where the directories are made")
	command.Flags().StringVar(&p.node, "node", "", "the node that they belong to")
	return command
}

func (p *provisioner) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := p.look(ctx); err != nil {
			klog.ErrorS(err, "will look again")
		}
		time.Sleep(lookEvery)
	}
	return ctx.Err()
}

func (p *provisioner) look(ctx context.Context) error {
	claims, err := p.client.CoreV1().PersistentVolumeClaims("").List(ctx, meta.ListOptions{})
	if err != nil {
		return err
	}
	for i := range claims.Items {
		claim := &claims.Items[i]
		wanted := claim.Annotations[wantedFrom] == provisionerName
		if wanted && claim.Status.Phase == core.ClaimPending && claim.DeletionTimestamp == nil {
			if err := p.provide(ctx, claim); err != nil {
				return err
			}
		}
	}
	volumes, err := p.client.CoreV1().PersistentVolumes().List(ctx, meta.ListOptions{})
	if err != nil {
		return err
	}
	for i := range volumes.Items {
		volume := &volumes.Items[i]
		ours := volume.Annotations[madeBy] == provisionerName
		if ours && volume.Status.Phase == core.VolumeReleased && volume.DeletionTimestamp == nil {
			if err := p.discard(ctx, volume); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *provisioner) provide(ctx context.Context, claim *core.PersistentVolumeClaim) error {
	name := fmt.Sprintf("pv-%s", claim.UID)
	path := filepath.Join(p.root, name)
	_, err := p.client.CoreV1().PersistentVolumes().Get(ctx, name, meta.GetOptions{})
	if err == nil {
		return nil // it is being bound
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return err
	}
	volume := &core.PersistentVolume{
		ObjectMeta: meta.ObjectMeta{
			Name:        name,
			Annotations: map[string]string{madeBy: provisionerName},
		},
		Spec: core.PersistentVolumeSpec{
			Capacity:                      claim.Spec.Resources.Requests,
			AccessModes:                   claim.Spec.AccessModes,
			PersistentVolumeReclaimPolicy: core.PersistentVolumeReclaimDelete,
			StorageClassName:              *claim.Spec.StorageClassName,
			ClaimRef: &core.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim",
				Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID,
			},
			PersistentVolumeSource: core.PersistentVolumeSource{
				Local: &core.LocalVolumeSource{Path: path},
			},
			NodeAffinity: &core.VolumeNodeAffinity{Required: &core.NodeSelector{
				NodeSelectorTerms: []core.NodeSelectorTerm{{
					MatchExpressions: []core.NodeSelectorRequirement{{
						Key:      core.LabelHostname,
						Operator: core.NodeSelectorOpIn,
						Values:   []string{p.node},
					}},
				}},
			}},
		},
	}
	_, err = p.client.CoreV1().PersistentVolumes().Create(ctx, volume, meta.CreateOptions{})
	return err
}

func (p *provisioner) discard(ctx context.Context, volume *core.PersistentVolume) error {
	if err := os.RemoveAll(filepath.Join(p.root, volume.Name)); err != nil {
		return err
	}
	return p.client.CoreV1().PersistentVolumes().Delete(ctx, volume.Name, meta.DeleteOptions{})
}
