//! Tests of the network's gradient, bits and batches.

use super::*;

fn architecture(fold: bool) -> Architecture {
    Architecture { width: 16, stages: 2, dim: 5, fold, grid: 2, residual: 0b10 }
}

fn images(count: usize, seed: u64) -> Vec<f32> {
    let mut draws = Draws::new(&[seed]);
    (0..count * 8 * 8 * 3).map(|_| draws.normal()).collect()
}

/// ⟨out, direction⟩ in f64.
fn value(plan: &Plan, parameters: &[f32], images: &[f32], direction: &[f32]) -> f64 {
    let out = run(plan, parameters, images, None).1;
    out.iter().zip(direction).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// The network is piecewise smooth: a central difference along a random direction of all weights must agree with
/// the gradient for all but the directions that step over a kink, so the median over directions is compared.
#[test]
fn the_gradient_agrees_with_central_differences() -> Result<()> {
    for fold in [false, true] {
        let plan = Plan::new(&architecture(fold), 8, 8);
        let network = Network::new(&architecture(fold), 8, 8, 3)?;
        let mut parameters = network.parameters().as_tensor().to_vec1::<f32>()?;
        // The residual gains start at zero and would hide their branch.
        let mut draws = Draws::new(&[17]);
        parameters.iter_mut().for_each(|p| *p += 0.05 * draws.normal());
        let x = images(6, 1);
        let direction: Vec<f32> = (0..6 * 5).map(|_| draws.normal()).collect();
        let (tape, _) = run(&plan, &parameters, &x, None);
        let Some(tape) = tape else { candle_core::bail!("no tape") };
        let grad = run_grad(&plan, &parameters, &tape, &direction);
        let mut ratios = Vec::new();
        for _ in 0..15 {
            let step: Vec<f32> = parameters.iter().map(|_| draws.normal()).collect();
            let h = 1e-4f32;
            let moved = |sign: f32| -> Vec<f32> {
                parameters.iter().zip(&step).map(|(p, s)| (sign * h).mul_add(*s, *p)).collect()
            };
            let (up, down) = (moved(1.0), moved(-1.0));
            let difference = value(&plan, &up, &x, &direction) - value(&plan, &down, &x, &direction);
            let inner: f64 = grad
                .iter()
                .zip(up.iter().zip(&down))
                .map(|(g, (u, d))| f64::from(*g) * f64::from(u - d))
                .sum();
            ratios.push((difference / inner - 1.0).abs());
        }
        ratios.sort_by(f64::total_cmp);
        println!("fold {fold}: relative differences {ratios:?}");
        assert!(ratios[ratios.len() / 2] < 2e-2);
    }
    Ok(())
}

#[test]
fn threads_do_not_change_bits() -> Result<()> {
    let network = Network::new(&architecture(true), 8, 8, 3)?;
    let mut seen: Option<(Vec<f32>, Vec<f32>)> = None;
    for threads in [1, 2, 8] {
        let pool =
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(candle_core::Error::wrap)?;
        let now = pool.install(|| -> Result<_> {
            let out = network.forward(images(40, 2))?;
            let grads = out.sqr()?.sum_all()?.backward()?;
            let Some(grad) = grads.get(network.parameters()) else { candle_core::bail!("no gradient") };
            Ok((out.flatten_all()?.to_vec1()?, grad.to_vec1()?))
        })?;
        match &seen {
            Some(first) => assert_eq!(first, &now, "{threads} threads"),
            None => seen = Some(now),
        }
    }
    Ok(())
}

#[test]
fn an_embedding_does_not_depend_on_its_batch() -> Result<()> {
    let network = Network::new(&architecture(false), 8, 8, 3)?;
    let x = images(33, 4);
    let all = network.embed(x.clone())?;
    let alone = network.embed(x[32 * 192..].to_vec())?;
    let half = network.embed(x[16 * 192..].to_vec())?;
    assert_eq!(half, all[16 * 5..]);
    assert_eq!(alone.len(), 5);
    Ok(())
}

/// At the same size nothing changes, and without the last halving the last plane has twice the resolution.
#[test]
fn a_resized_network_has_the_same_weights_and_denser_planes() -> Result<()> {
    let network = Network::new(&architecture(false), 8, 8, 3)?;
    network.forward(images(16, 1))?; // statistics that are not those of the beginning
    let x = images(4, 2);
    let same = network.resized(8, 8, false)?;
    assert_eq!(same.embed(x.clone())?, network.embed(x.clone())?);
    let planes = [network.activations(&x)?, network.resized(8, 8, true)?.activations(&x)?]
        .map(|plane| plane.dims().to_vec());
    assert_eq!(planes, [vec![4, 32, 4, 4], vec![4, 32, 8, 8]]);
    // Another size alone: an image four times as large has planes four times as large.
    let large: Vec<f32> = images(16, 4);
    assert_eq!(network.resized(16, 16, false)?.activations(&large)?.dims(), [4, 32, 8, 8]);
    // The copy has weights of its own.
    same.parameters().set(&same.parameters().zeros_like()?)?;
    assert_ne!(same.embed(x.clone())?, network.embed(x)?);
    Ok(())
}
